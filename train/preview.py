"""Previews: a contact sheet of fixed held-out references and prompts, drawn as users would."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ic_jax.pipeline import InstantCharacterPipeline
from train.data.dataset import Dataset
from train.data.decode import decode_image
from train.models import Models
from train.recipe import Recipe
from train.step import State

MARGIN = 4  # pixels


class Preview:
    """Rows of references, each followed by a picture for every prompt."""

    def __init__(self, recipe: Recipe, models: Models, dataset: Dataset, held: np.ndarray):
        self._recipe, self._models = recipe, models
        self._side = next(iter(recipe.stages.values())).resolution
        candidates = held if held.any() else np.ones_like(held)
        chosen = np.flatnonzero(candidates)[: recipe.reporting.preview_references]
        records = [int(np.flatnonzero(dataset.character == c)[0]) for c in chosen]
        self._references = [decode_image(dataset.read(r).image)[0] for r in records]

    def draw(self, state: State, step: int) -> np.ndarray:
        """Write RUN/previews/STEP.png; returns it, uint8 [h, w, 3]."""
        options, side = self._recipe.reporting, self._side
        dtype = jnp.dtype(self._recipe.dtype)
        weights = state.adapter if state.average is None else state.average
        adapter = jax.device_put(jax.tree.map(lambda x: x.astype(dtype), weights), jax.devices()[0])
        pipe = InstantCharacterPipeline(dataclasses.replace(self._models.model, adapter=adapter))
        rows = []
        for reference in self._references:
            drawn = pipe(
                list(options.preview_prompts),
                height=side,
                width=side,
                num_inference_steps=options.preview_steps,
                subject_image=reference,
                max_sequence_length=self._recipe.text_length,
            ).images
            rows.append([Image.fromarray(reference), *drawn])
        sheet = _sheet(rows, side)
        folder = Path(self._recipe.out) / "previews"
        folder.mkdir(exist_ok=True)
        sheet.save(folder / f"{step:07d}.png")
        return np.asarray(sheet)


def _sheet(rows: list[list[Image.Image]], side: int) -> Image.Image:
    cell = side + MARGIN
    sheet = Image.new("RGB", (cell * len(rows[0]) + MARGIN, cell * len(rows) + MARGIN), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            fitted = picture.copy()
            fitted.thumbnail((side, side))
            sheet.paste(fitted, (MARGIN + x * cell, MARGIN + y * cell))
    return sheet
