"""The optimiser: AdamW on what is trained alone, the learning rate an argument of the step."""

from dataclasses import dataclass
from typing import Any

import optax

from train.recipe import Stage


@dataclass(frozen=True)
class Rule:
    """Clipping, Adam's direction and decoupled decay; the step multiplies by -learning rate.

    optax's own rule is functions, which cannot tell that their numbers are the same as before;
    this one is its numbers, which are compiled into the step.
    """

    clip: float
    b1: float
    b2: float
    weight_decay: float

    def init(self, parameters: Any) -> Any:
        """The state before the first step, of the same structure whatever the numbers."""
        return self._chain().init(parameters)

    def update(self, gradient: Any, state: Any, parameters: Any) -> tuple[Any, Any]:
        """The direction to go against, and the state after it."""
        return self._chain().update(gradient, state, parameters)

    def _chain(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.scale_by_adam(b1=self.b1, b2=self.b2),
            optax.add_decayed_weights(self.weight_decay),
        )


def optimizer(stage: Stage) -> Rule:
    """A stage's; moments carry over from one stage to the next."""
    return Rule(stage.clip, stage.b1, stage.b2, stage.weight_decay)


def learning_rate(stage: Stage, step_in_stage: int) -> float:
    """Linear warm-up from the first step of the stage, then constant [WithAnyone]."""
    return stage.learning_rate * min(1.0, (step_in_stage + 1) / max(1, stage.warmup))
