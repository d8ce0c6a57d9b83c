"""Batch plans of the stages: the records that a stage trains on, and those that measure it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from ic_jax.config import ConfigError
from train.data.batch_plan import BatchPlan
from train.data.candidates import Candidates
from train.data.characters import held_out, pictures_alone
from train.data.dataset import Dataset
from train.recipe import Recipe

MEASURED = 2  # held-out characters that the reference effect needs
HeldOut = Bool[np.ndarray, "characters"]


class StageData(NamedTuple):
    """Batch plans of one stage."""

    training: BatchPlan
    measuring: BatchPlan | None  # of the reference effect; None where it cannot be measured

    @property
    def plans(self) -> list[BatchPlan]:
        """All plans of the stage."""
        return [plan for plan in self if plan is not None]


def held_out_characters(recipe: Recipe, dataset: Dataset) -> HeldOut:
    """Return a mask of the characters held out: the recipe's fraction, and at least two.

    Where the fraction gives fewer, two are chosen by the same hash, if possible of those with
    several pictures. Nobody is held out at holdout = 0, and for a LoRA, which has no reference, no
    more than the recipe says.

    Raises:
        ConfigError: too few characters to hold two out and train on two.
    """
    mask = held_out(dataset, recipe.holdout)
    if recipe.lora or not recipe.holdout or _measurable(dataset, mask) >= MEASURED:
        return mask
    pictures = pictures_alone(dataset)
    count = int((pictures > 0).sum())
    alone = " that a picture shows alone" if len(dataset.others) else ""
    if count < 2 * MEASURED:
        raise ConfigError(
            f"holdout is {recipe.holdout}, and {dataset.path} has {count} characters{alone}: the "
            "effect of the reference is measured on two that are not trained on; add some until "
            "there are four, or write holdout = 0 to train without measuring it"
        )
    several = pictures >= 2
    wanted = several if several.sum() >= 2 * MEASURED else ~several  # pairs are trained on first
    order = sorted(np.flatnonzero(pictures), key=lambda c: dataset.character_hash[c])
    order.sort(key=lambda c: (not mask[c], not wanted[c]))
    mask[order[:MEASURED]] = True
    return mask


def stage_data(recipe: Recipe, dataset: Dataset, held_out: HeldOut) -> dict[str, StageData]:
    """Return the batch plans of every stage, by its name."""
    # A LoRA has no reference: its pictures may show any number of characters, and nothing measures
    # one. A single held-out character has no other one to compare with.
    counts = {
        name: None if recipe.lora else stage.subjects for name, stage in recipe.stages.items()
    }
    trained = {n: Candidates(dataset, ~held_out, n) for n in set(counts.values())}
    measured = recipe.lora is None and _measurable(dataset, held_out) >= MEASURED
    held = Candidates(dataset, held_out, subjects=1) if measured else None
    return {
        name: StageData(
            _training(recipe, name, dataset, trained[counts[name]]),
            _measuring(recipe, name, dataset, held) if held else None,
        )
        for name in recipe.stages
    }


def _measurable(dataset: Dataset, held_out: HeldOut) -> int:
    """Count the held-out characters that a picture shows alone."""
    return int((held_out & (pictures_alone(dataset) > 0)).sum())


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Raise ConfigError where a stage needs boxes that the data set lacks."""
    for name, stage in recipe.stages.items():
        if stage.focus and not dataset.card.get("focused"):
            raise ConfigError(
                f"{name}.focus is {stage.focus}, and {dataset.path} has no focus boxes; list them "
                "as `focus` in the metadata and prepare it again, or set focus to 0"
            )
        if stage.subjects > 1 and not len(dataset.others):
            raise ConfigError(
                f"{name}.subjects is {stage.subjects}, and no picture of {dataset.path} shows "
                "several characters; list them as `subjects` in the metadata and prepare it "
                "again, or set subjects to 1"
            )


def _training(recipe: Recipe, name: str, dataset: Dataset, trained: Candidates) -> BatchPlan:
    stage = recipe.stages[name]
    return BatchPlan(
        dataset,
        batch=stage.batch,
        resolution=stage.resolution,
        paired=stage.paired,
        seed=(recipe.seed, name),
        candidates=trained,
    )


def _measuring(recipe: Recipe, name: str, dataset: Dataset, held: Candidates) -> BatchPlan:
    """Return the plan of the reference effect, paired if the stage has any pairs.

    Its batch is what the stage computes at a time, and at least two rows, since each row needs
    another one for its wrong reference.
    """
    stage = recipe.stages[name]
    return BatchPlan(
        dataset,
        batch=max(2, stage.batch // stage.accumulate),
        resolution=stage.resolution,
        paired=1.0 if stage.paired and len(held.pairs) else 0.0,
        seed=(0, "effect", name),
        candidates=held,
    )
