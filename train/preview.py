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
from ic_jax.config import SamplingConfig
from ic_jax.contact_sheet import Cell, draw_sheet, shown_side
from ic_jax.files import atomic_file
from ic_jax.models.adapter import Adapter
from ic_jax.pipeline import InstantCharacterPipeline
from ic_jax.weights.loading import Model
from train.data.characters import pictures_alone, shows_one
from train.data.pictures import cut_out, decode_character
from train.encoded_cache import Cache
from train.lora import with_lora
from train.objective import Trainable
from train.optimizer import evaluated
from train.recipe import Recipe
from train.setup import Setup
from train.step import TrainState

SEED = 0  # of every picture, so that sheets differ by their weights alone


class Preview:
    """Contact sheets: a row for each reference, a column for each prompt; one row for a LoRA."""

    def __init__(self, run: Setup):
        recipe, dataset, held_out = run.recipe, run.dataset, run.held_out
        self._recipe, self._model = recipe, run.models.model
        self._side = next(iter(recipe.stages.values())).resolution
        self._sampling = run.models.model.sampling or SamplingConfig()
        self._prompts = _prompts(recipe, run.cache, self._sampling)
        self._references: dict[str, np.ndarray] = {}
        if recipe.lora is None:
            candidates = held_out if held_out.any() else np.ones_like(held_out)
            pictured = candidates & (pictures_alone(dataset) > 0)
            characters = np.flatnonzero(pictured)[: recipe.reporting.preview_references]
            alone = shows_one(dataset)
            records = [int(np.flatnonzero(alone & (dataset.character == c))[0]) for c in characters]
            of = "held out" if held_out.any() else "trained on"
            self._references = {
                f"{dataset.characters[c]} ({of})": cut_out(decode_character(dataset.read(r)))
                for c, r in zip(characters, records, strict=True)
            }

    def write(self, state: TrainState, step: int) -> np.ndarray:
        """Write RUN/previews/STEP.png and return it, uint8 [h, w, 3].

        Collective: every process must call it; the first one writes.
        """
        weights = state.ema_params
        if weights is None:
            weights = evaluated(state.opt_state, state.params)
        pipe = InstantCharacterPipeline(self._exported(weights))
        rows: list[list[Cell]] = [
            [name, Image.fromarray(reference), *self._pictures(pipe, subject_image=reference)]
            for name, reference in self._references.items()
        ]
        prompts = list(map(self._recipe.prompted, self._recipe.reporting.preview_prompts))
        sheet = draw_sheet(
            [*(("character", "reference") if rows else ()), *map(str, range(1, len(prompts) + 1))],
            rows or [self._pictures(pipe)],
            side=shown_side(self._side),
            legend=[
                self._facts(step),
                *(f"{i}: {prompt or 'the empty prompt'}" for i, prompt in enumerate(prompts, 1)),
            ],
        )
        if multihost.is_first():
            folder = Path(self._recipe.out) / "previews"
            folder.mkdir(exist_ok=True)
            with atomic_file(folder / f"{step:07d}.png") as part:
                sheet.save(part, "PNG")
        return np.asarray(sheet)

    @property
    def _steps(self) -> int:
        return self._recipe.reporting.preview_steps or self._sampling.num_inference_steps

    def _facts(self, step: int) -> str:
        """Return how the pictures are drawn: as the model draws by default."""
        sampling, true_cfg = self._sampling, ""
        if _guides_away(sampling):
            true_cfg = f", true cfg scale {sampling.true_cfg_scale:g}"
        subject = f", subject scale {sampling.subject_scale:g}" if self._references else ""
        return (
            f"after step {step} of {self._recipe.total_steps}: seed {SEED}, {self._steps} sampling "
            f"steps, guidance {sampling.guidance_scale:g}{true_cfg}{subject}"
        )

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
            num_inference_steps=self._steps,
            seed=SEED,
            max_sequence_length=self._recipe.text_length,
            **self._prompts,
            **subject,
        )
        return result.images


@partial(jax.jit, static_argnames=("dtype",))
def _cast(weights: Trainable, dtype: DTypeLike) -> Trainable:
    return jax.tree.map(lambda x: x.astype(dtype), weights)


def _guides_away(sampling: SamplingConfig) -> bool:
    """Return whether a model draws with true guidance where no negative prompt is given."""
    return sampling.true_cfg_scale != 1 and sampling.negative_subject_scale is not None


def _prompts(recipe: Recipe, cache: Cache | None, sampling: SamplingConfig) -> dict[str, Any]:
    """Return the pipeline's arguments for the prompts, or for their cached embeddings."""
    if cache is None:
        return {"prompt": [recipe.prompted(p) for p in recipe.reporting.preview_prompts]}
    prompts = [cache.prompts.read(i) for i in range(1, len(cache.texts))]
    embeds, pooled = map(np.stack, zip(*prompts, strict=True))
    arguments: dict[str, Any] = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    if _guides_away(sampling):
        empty = {"prompt_embeds": cache.empty.t5, "pooled_prompt_embeds": cache.empty.pooled}
        arguments |= {f"negative_{name}": np.asarray(x)[None] for name, x in empty.items()}
    return arguments
