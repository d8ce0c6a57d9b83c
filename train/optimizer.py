"""Optimiser: AdamW on the trainable parameters; the learning rate is an argument of the step."""

from functools import cache

import optax

from train.recipe import Stage


def optimizer(stage: Stage) -> optax.GradientTransformation:
    """Return clipping, Adam and decoupled weight decay; the step multiplies by -learning rate.

    The state has the same structure for every stage, so moments carry over. Stages of equal
    settings get the same object, so that they share one compiled step.
    """
    return _adamw(stage.clip, stage.b1, stage.b2, stage.weight_decay)


@cache
def _adamw(clip: float, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay),
    )


def learning_rate(stage: Stage, step_in_stage: int) -> float:
    """Return the rate of a step: linear warm-up within the stage, then constant [WithAnyone]."""
    return stage.learning_rate * min(1.0, (step_in_stage + 1) / max(1, stage.warmup))
