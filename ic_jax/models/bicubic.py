"""Bicubic resizing, equal to torch's.

`torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` uses the kernel of Keys with
a = -0.75, repeats the border and does not widen the kernel when it shrinks. jax.image.resize uses
a = -0.5 and drops taps beyond the border, so its results differ.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

A = -0.75


def resize(table: Float[Array, "h w d"], height: int, width: int) -> Float[Array, "h2 w2 d"]:
    """Resample `table` to [height, width, d], in float32."""
    rows, columns = weights(table.shape[0], height), weights(table.shape[1], width)
    # By default a TPU multiplies float32 in bfloat16.
    return jnp.einsum(
        "yh,xw,hwd->yxd",
        rows,
        columns,
        table.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def weights(size: int, new_size: int) -> Float[np.ndarray, "{new_size} {size}"]:
    """Return the matrix that resamples `size` samples to `new_size`."""
    matrix = np.zeros((new_size, size), np.float32)
    centre = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    first = np.floor(centre).astype(int)
    for tap in range(-1, 3):
        source = np.clip(first + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(new_size), source), _kernel(centre - (first + tap)))
    return matrix


def _kernel(distance: np.ndarray) -> np.ndarray:
    """Evaluate the cubic convolution kernel of Keys (1981), 0 beyond a distance of 2."""
    x = np.abs(distance)
    near = (A + 2) * x**3 - (A + 3) * x**2 + 1
    far = A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)
