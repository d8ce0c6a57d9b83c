"""Previews: a contact sheet of fixed prompts, drawn as users would; an adapter's with fixed
held-out references."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from ic_jax import multihost
from ic_jax.models.adapter import Adapter
from ic_jax.pipeline import InstantCharacterPipeline
from ic_jax.weights.loading import Model
from train.data.dataset import Dataset
from train.data.pictures import cut_out, decode_pixels
from train.encoded_cache import Cache
from train.lora import with_lora
from train.models import Models
from train.objective import Trainable
from train.recipe import Recipe
from train.step import TrainState

MARGIN = 4  # pixels


class Preview:
    """Rows of references, each followed by a picture for every prompt; a LoRA's is one row."""

    def __init__(
        self,
        recipe: Recipe,
        models: Models,
        dataset: Dataset,
        held: np.ndarray,
        stored: Cache | None,
    ):
        self._recipe, self._model = recipe, models.model
        self._side = next(iter(recipe.stages.values())).resolution
        self._prompts = _prompts(recipe, stored)
        self._references: list[np.ndarray] = []
        if recipe.lora is None:
            candidates = held if held.any() else np.ones_like(held)
            chosen = np.flatnonzero(candidates)[: recipe.reporting.preview_references]
            records = [int(np.flatnonzero(dataset.character == c)[0]) for c in chosen]
            self._references = [cut_out(decode_pixels(dataset.read(r))) for r in records]

    def draw(self, state: TrainState, step: int) -> np.ndarray:
        """Write RUN/previews/STEP.png; returns it, uint8 [h, w, 3].

        All hosts draw it together, and the first one writes.
        """
        weights = state.params if state.ema_params is None else state.ema_params
        pipe = InstantCharacterPipeline(self._with(weights))
        rows = [
            [Image.fromarray(reference), *self._drawn(pipe, subject_image=reference)]
            for reference in self._references
        ]
        sheet = _sheet(rows or [self._drawn(pipe)], self._side)
        if multihost.is_first():
            folder = Path(self._recipe.out) / "previews"
            folder.mkdir(exist_ok=True)
            sheet.save(folder / f"{step:07d}.png")
        return np.asarray(sheet)

    def _with(self, weights: Trainable) -> Model:
        """The model that users would draw with."""
        dtype = jnp.dtype(self._recipe.dtype)
        weights = _cast(weights, dtype=dtype)
        if isinstance(weights, Adapter):
            return dataclasses.replace(self._model, adapter=weights)
        assert self._model.transformer is not None
        flux = with_lora(self._model.transformer, weights)
        return dataclasses.replace(self._model, transformer=flux)

    def _drawn(self, pipe: InstantCharacterPipeline, **subject: Any) -> list[Image.Image]:
        drawn: Any = pipe(
            height=self._side,
            width=self._side,
            num_inference_steps=self._recipe.reporting.preview_steps,
            max_sequence_length=self._recipe.text_length,
            **self._prompts,
            **subject,
        )
        return drawn.images


@partial(jax.jit, static_argnames=("dtype",))
def _cast(weights: Trainable, dtype: DTypeLike) -> Trainable:
    return jax.tree.map(lambda x: x.astype(dtype), weights)


def _prompts(recipe: Recipe, stored: Cache | None) -> dict[str, Any]:
    """The pipeline's arguments for the prompts: themselves, or what a cache has of them."""
    if stored is None:
        return {"prompt": [recipe.prompted(p) for p in recipe.reporting.preview_prompts]}
    found = [stored.prompts.read(i) for i in range(1, len(stored.texts))]
    embeds, pooled = map(np.stack, zip(*found, strict=True))
    # True guidance would need the text encoders for its negative prompt.
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "true_cfg_scale": 1.0}


def _sheet(rows: list[list[Image.Image]], side: int) -> Image.Image:
    cell = side + MARGIN
    sheet = Image.new("RGB", (cell * len(rows[0]) + MARGIN, cell * len(rows) + MARGIN), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            fitted = picture.copy()
            fitted.thumbnail((side, side))
            sheet.paste(fitted, (MARGIN + x * cell, MARGIN + y * cell))
    return sheet
