"""Rotary position embedding over several axes (black-forest-labs/flux math.py and layers.py)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ic_jax.config import FluxConfig


class Rope(NamedTuple):
    """Rotary table of text and then image tokens: one angle per pair of channels."""

    cos: Float[Array, "n d_2"]
    sin: Float[Array, "n d_2"]


def rope_table(ids: np.ndarray, config: FluxConfig) -> Rope:
    """Compute the rotary table of position ids [n, 3], text tokens first, as float32 NumPy arrays.

    NumPy computes the angles in float64, since the ids depend on the shape of the picture alone.
    """
    angles = [
        ids[:, axis, None] / config.rope_theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
        for axis, dim in enumerate(config.axes_dims_rope)
    ]
    table = np.concatenate(angles, axis=-1)
    cos: Any = np.cos(table).astype(np.float32)
    sin: Any = np.sin(table).astype(np.float32)
    return Rope(cos, sin)


def rotate(x: Float[Array, "b n h d"], rope: Rope) -> Float[Array, "b n h d"]:
    """Rotate each pair of adjacent channels by its angle, in float32."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = rope.cos[None, :, None, :], rope.sin[None, :, None, :]  # 1 n 1 d/2
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
