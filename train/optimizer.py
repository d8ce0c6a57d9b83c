"""The optimiser: AdamW on what is trained alone, the learning rate an argument of the step."""

import optax

from train.recipe import Stage


def optimizer(stage: Stage) -> optax.GradientTransformation:
    """Clipping, Adam's direction and decoupled decay; the step multiplies by -learning rate.

    Its state has the same structure for every stage, so moments carry over from one to the next.
    """
    return optax.chain(
        optax.clip_by_global_norm(stage.clip),
        optax.scale_by_adam(b1=stage.b1, b2=stage.b2),
        optax.add_decayed_weights(stage.weight_decay),
    )


def learning_rate(stage: Stage, step_in_stage: int) -> float:
    """Linear warm-up from the first step of the stage, then constant [WithAnyone]."""
    return stage.learning_rate * min(1.0, (step_in_stage + 1) / max(1, stage.warmup))
