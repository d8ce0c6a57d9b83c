"""Which records a stage trains on, and which it is measured on."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from ic_jax.config import ConfigError
from train.data.batch_plan import BatchPlan
from train.data.dataset import Dataset
from train.recipe import Recipe

Held = Bool[np.ndarray, "characters"]


def training(recipe: Recipe, name: str, dataset: Dataset, held: Held) -> BatchPlan:
    """The batches of the stage called `name`."""
    stage = recipe.stages[name]
    return BatchPlan(
        dataset,
        batch=stage.batch,
        resolution=stage.resolution,
        paired=stage.paired,
        seed=(recipe.seed, name),
        characters=~held,
    )


def measuring(recipe: Recipe, name: str, dataset: Dataset, held: Held) -> BatchPlan:
    """Those that its reference effect is measured on: paired if the stage is at all, and no more
    rows than it computes at a time, but two, of which each can be the other's."""
    stage = recipe.stages[name]
    return BatchPlan(
        dataset,
        batch=max(2, stage.batch // stage.accumulate),
        resolution=stage.resolution,
        paired=1.0 if stage.paired and _has_pairs(dataset, held) else 0.0,
        seed=(0, "effect", name),
        characters=held,
    )


def measures(recipe: Recipe, held: Held) -> bool:
    """Only an adapter has a reference, and only characters held out can tell: with one alone
    there is no other's reference to compare with."""
    return recipe.lora is None and int(held.sum()) >= 2


def check_focus(recipe: Recipe, dataset: Dataset) -> None:
    """ConfigError where a stage asks for what the data set has not."""
    if dataset.card.get("focused", 0):
        return
    for name, stage in recipe.stages.items():
        if stage.focus:
            raise ConfigError(
                f"{name}.focus is {stage.focus}, and {dataset.path} has no boxes to focus on; "
                "name them as `focus` in its metadata and prepare it again, or set it to 0"
            )


def _has_pairs(dataset: Dataset, held: Held) -> bool:
    return bool((np.bincount(dataset.character, minlength=len(held))[held] >= 2).any())


def every(recipe: Recipe, dataset: Dataset, held: Held) -> Iterator[BatchPlan]:
    """All plans of a run."""
    for name in recipe.stages:
        yield training(recipe, name, dataset, held)
        if measures(recipe, held):
            yield measuring(recipe, name, dataset, held)
