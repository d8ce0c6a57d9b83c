"""Moving average of the trained parameters: its decay at each step, and what it averages over.

The decay warms up: after n steps it is min(ema, (1 + n) / (10 + n)), as in TensorFlow's
ExponentialMovingAverage and in diffusers, so that an average forgets the parameters from before
training within a few steps. n follows from the recipe and the step alone: a checkpoint holds no
count, and one that was saved before decays warmed up goes on as every other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from train.objective import Trainable
from train.recipe import Recipe

FAR = 0.5  # distance of the average from the last parameters, over their way, that is warned of


def decay(ema: float, steps: int) -> float:
    """Return the decay of an average that has taken in `steps` steps."""
    return min(ema, (1 + steps) / (10 + steps))


def steps_before(recipe: Recipe) -> dict[str, int]:
    """Return how many steps the average has taken in when each stage starts.

    In a stage with ema = 0 the average is the parameters, and after it the average begins anew.
    """
    steps, before = 0, {}
    for name, stage in recipe.stages.items():
        before[name] = steps
        steps = steps + stage.steps if stage.ema else 0
    return before


def effective_steps(recipe: Recipe, step: int) -> float:
    """Return over how many steps the average goes after `step`: a plain mean's that is as even.

    It is 1 / sum of squares of the weights that the average gives to the parameters of each step.
    """
    decays = _decays(recipe)[:step]
    kept = np.cumprod(decays[::-1])[::-1]  # of step i and everything before, by the end
    weights = (1 - decays) * np.append(kept[1:], 1.0)
    return float(1 / (np.square(weights).sum() + kept[0] ** 2))


def _decays(recipe: Recipe) -> Float[np.ndarray, "steps"]:
    before, parts = steps_before(recipe), list[float]()
    for name, stage in recipe.stages.items():
        parts += [decay(stage.ema, before[name] + n) for n in range(stage.steps)]
    return np.array(parts)


class Ways(NamedTuple):
    """Norms of the parameters' change since before training."""

    average: float
    last: float
    apart: float  # of the average from the last parameters

    @property
    def far(self) -> bool:
        """Whether the average is far from the last parameters, over their own way."""
        return self.apart > FAR * self.last

    def __str__(self) -> str:
        return f"changed by {self.average:.4g} since the start, the last weights by {self.last:.4g}"


def ways(start: Trainable, average: Trainable, last: Trainable) -> Ways:
    """Return how far the average and the last parameters went from `start`."""
    return Ways(_distance(average, start), _distance(last, start), _distance(average, last))


def _distance(a: Any, b: Any) -> float:
    # Array by array, so that no third copy of all parameters is made.
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(float(jnp.square(x - y).sum()) for x, y in leaves)))
