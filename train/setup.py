"""Setup of a run: recipe, base model, data set, batch plans, cache and models, opened once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ic_jax import flow
from ic_jax.weights.model_folder import ModelFolder
from train.data.batch_plan import BatchPlan
from train.data.dataset import Dataset
from train.data.loader import Cached, HostBatch, SkipCounter, batches
from train.data.pictures import CENTRED, Augment
from train.encoded_cache import Cache
from train.models import Models, base_digests, load_models, trainable_metadata
from train.recipe import Recipe
from train.report import check_wandb
from train.stage_data import (
    HeldOut,
    StageData,
    check_data,
    held_out_characters,
    stage_data,
)


@dataclass(frozen=True)
class Setup:
    """Everything that a run reads, opened and checked."""

    recipe: Recipe
    base: ModelFolder
    dataset: Dataset
    held_out: HeldOut
    stages: Mapping[str, StageData]
    cache: Cache | None
    models: Models

    def training_batches(
        self, name: str, start: int, rows: Sequence[int], skips: SkipCounter
    ) -> Iterator[HostBatch]:
        """Return the batches of a stage from its step `start` to its end.

        Args:
            rows: of every global batch that this process prepares.
            skips: counts the samples that had to be replaced.
        """
        stage = self.recipe.stages[name]
        return self._batches(
            self.stages[name].training,
            Augment(),
            start=start,
            stop=stage.steps,
            skips=skips,
            rows=rows,
            cell=self.models.vae.downscale if stage.focus else None,
        )

    def measuring_batches(self, name: str) -> Iterator[HostBatch]:
        """Return held-out batches of a stage, of which some measure its reference effect."""
        plan = self.stages[name].measuring
        assert plan is not None
        return self._batches(plan, CENTRED, start=0, stop=8 * self.effect_batches(name))

    def effect_batches(self, name: str) -> int:
        """Return on how many batches the reference effect of a stage is measured.

        They are the same number of rows, however many parts a batch is computed in.
        """
        return self.recipe.reporting.effect_batches * self.recipe.stages[name].accumulate

    def _batches(self, plan: BatchPlan, augment: Augment, **options: Any) -> Iterator[HostBatch]:
        siglip, cache = self.models.frozen.siglip, self.cache
        return batches(
            self.dataset,
            plan,
            augment,
            side=siglip.config.image_size if siglip else None,
            token=self.models.vae.downscale * flow.PATCH,
            cached=Cached(cache.latents(plan), cache.captions) if cache else None,
            **options,
        )

    def metadata(self, step: int) -> dict[str, Any]:
        """Return what must be equal when a run is resumed after `step`, as JSON values."""
        recipe, firsts = self.recipe, self.recipe.first_steps()
        finished = {n: s.steps for n, s in recipe.stages.items() if firsts[n] + s.steps <= step}
        return {
            "seed": recipe.seed,
            "dtype": recipe.dtype,
            "optimizer": recipe.optimizer,
            "holdout": recipe.holdout,
            "data": [shard["sha256"] for shard in self.dataset.card["shards"]],
            "cached": bool(recipe.cache),
            "text_length": recipe.text_length,
            "model": base_digests(self.base),
            **trainable_metadata(recipe, self.models),
            "finished stages": finished,
        }


def setup(recipe: Recipe) -> Setup:
    """Open and check everything that a run needs, so that errors come before the first step.

    Raises:
        ConfigError: the recipe does not fit the data set or the model.
        DataError: there is no such data set, or its cache is incomplete or of another recipe.
        WeightsError: the MODEL folder is damaged, or lacks a component that training needs.
    """
    check_wandb(recipe.reporting)
    dataset = Dataset(recipe.data)
    dataset.check_index()
    check_data(recipe, dataset)
    held = held_out_characters(recipe, dataset)
    stages = stage_data(recipe, dataset, held)
    base = ModelFolder.open(recipe.model)
    cache = None
    if recipe.cache:
        cache = Cache(recipe, base, dataset)
        for part in cache.parts(plan for data in stages.values() for plan in data.plans):
            part.check()
    return Setup(recipe, base, dataset, held, stages, cache, load_models(recipe, base))
