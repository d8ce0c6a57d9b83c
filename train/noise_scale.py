"""Gradient noise scale: how many samples a batch can usefully have (arXiv 1812.06162, appendix A).

Where a batch is computed in parts, the gradients of the parts are at hand before they are summed:
their squared norms and that of the whole batch give the variance of a sample's gradient, and the
squared norm of the true one. Their quotient is the batch size at which noise and gradient are
alike: far below it a larger batch shortens training almost in proportion, far above it does not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


class GradientNoise(NamedTuple):
    """Unbiased estimates of one step; each alone is noisy, and `square` can be below zero."""

    variance: Float[Array, ""]  # of one sample's gradient: the trace of its covariance
    square: Float[Array, ""]  # squared norm of the gradient without noise


def gradient_noise(
    of_parts: Float[Array, ""], of_batch: Float[Array, ""], *, part: int, batch: int
) -> GradientNoise:
    """Return the estimates of a step (equation A.2).

    Args:
        of_parts: mean over the parts of the squared norm of a part's gradient.
        of_batch: squared norm of the batch's gradient.
        part: samples of a part.
        batch: samples of the batch, more than of a part.
    """
    square = (batch * of_batch - part * of_parts) / (batch - part)
    variance = (of_parts - of_batch) / (1 / part - 1 / batch)
    return GradientNoise(variance, square)


def noise_scale(steps: Sequence[GradientNoise | None]) -> dict[str, float]:
    """Return the means over steps, and their quotient where it has a meaning; or nothing."""
    known = [step for step in steps if step is not None]
    if not known:
        return {}
    variance, square = (float(np.mean(values)) for values in zip(*known, strict=True))
    values = {"gradient variance": variance, "gradient square": square}
    if square > 0:
        values["gradient noise scale"] = variance / square
    return values
