"""Previews: contact sheets of fixed prompts and held-out references, by the user's pipeline."""

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
from train.data.pictures import cut_out, decode_pixels
from train.encoded_cache import Cache
from train.lora import with_lora
from train.objective import Trainable
from train.optimizer import evaluated
from train.recipe import Recipe
from train.setup import Setup
from train.step import TrainState

MARGIN = 4  # pixels


class Preview:
    """Contact sheets: a row for each reference, a column for each prompt; one row for a LoRA."""

    def __init__(self, run: Setup):
        recipe, dataset, held_out = run.recipe, run.dataset, run.held_out
        self._recipe, self._model = recipe, run.models.model
        self._side = next(iter(recipe.stages.values())).resolution
        self._prompts = _prompts(recipe, run.cache)
        self._references: list[np.ndarray] = []
        if recipe.lora is None:
            candidates = held_out if held_out.any() else np.ones_like(held_out)
            characters = np.flatnonzero(candidates)[: recipe.reporting.preview_references]
            records = [int(np.flatnonzero(dataset.character == c)[0]) for c in characters]
            self._references = [cut_out(decode_pixels(dataset.read(r))) for r in records]

    def write(self, state: TrainState, step: int) -> np.ndarray:
        """Write RUN/previews/STEP.png and return it, uint8 [h, w, 3].

        Collective: every process must call it; the first one writes.
        """
        weights = state.ema_params
        if weights is None:
            weights = evaluated(state.opt_state, state.params)
        pipe = InstantCharacterPipeline(self._exported(weights))
        rows = [
            [Image.fromarray(reference), *self._pictures(pipe, subject_image=reference)]
            for reference in self._references
        ]
        sheet = _sheet(rows or [self._pictures(pipe)], self._side)
        if multihost.is_first():
            folder = Path(self._recipe.out) / "previews"
            folder.mkdir(exist_ok=True)
            sheet.save(folder / f"{step:07d}.png")
        return np.asarray(sheet)

    def _exported(self, weights: Trainable) -> Model:
        """Return the model as users would export it."""
        dtype = jnp.dtype(self._recipe.dtype)
        weights = _cast(weights, dtype=dtype)
        if isinstance(weights, Adapter):
            return dataclasses.replace(self._model, adapter=weights)
        assert self._model.transformer is not None
        flux = with_lora(self._model.transformer, weights)
        return dataclasses.replace(self._model, transformer=flux)

    def _pictures(self, pipe: InstantCharacterPipeline, **subject: Any) -> list[Image.Image]:
        result: Any = pipe(
            height=self._side,
            width=self._side,
            num_inference_steps=self._recipe.reporting.preview_steps,
            max_sequence_length=self._recipe.text_length,
            **self._prompts,
            **subject,
        )
        return result.images


@partial(jax.jit, static_argnames=("dtype",))
def _cast(weights: Trainable, dtype: DTypeLike) -> Trainable:
    return jax.tree.map(lambda x: x.astype(dtype), weights)


def _prompts(recipe: Recipe, cache: Cache | None) -> dict[str, Any]:
    """Return the pipeline's arguments for the prompts, or for their cached embeddings."""
    if cache is None:
        return {"prompt": [recipe.prompted(p) for p in recipe.reporting.preview_prompts]}
    prompts = [cache.prompts.read(i) for i in range(1, len(cache.texts))]
    embeds, pooled = map(np.stack, zip(*prompts, strict=True))
    # True CFG would need the text encoders for its negative prompt.
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
