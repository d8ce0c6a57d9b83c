"""Rotary position embedding over several axes (black-forest-labs/flux math.py and layers.py)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ic_jax.config import FluxConfig
from ic_jax.models.attention import Heads
from ic_jax.models.heads import token_axis
from ic_jax.models.target import platform


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


@jax.custom_vjp
def rotate(x: Heads, rope: Rope) -> Heads:
    """Rotate each pair of adjacent channels by its angle, in float32."""
    return (_by_product if platform() == "tpu" else _by_pairs)(x, rope).astype(x.dtype)


def _rotate_forward(x: Heads, rope: Rope) -> tuple[Heads, Rope]:
    return rotate(x, rope), rope


def _rotate_backward(rope: Rope, gradient: Heads) -> tuple[Heads, None]:
    return rotate(gradient, Rope(rope.cos, -rope.sin)), None  # the rotation back


rotate.defvjp(_rotate_forward, _rotate_backward)


def _by_pairs(x: Heads, rope: Rope) -> Heads:
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = map(_beside_heads, rope)
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def _by_product(x: Heads, rope: Rope) -> Heads:
    """Compute x cos + (x P) sin, where P maps each pair (a, b) to (-b, a).

    A pair as an axis of two is a layout that a TPU computes badly in. The product costs it little
    and is exact, since each of its sums has one term.
    """
    p = jnp.asarray(np.kron(np.eye(x.shape[-1] // 2), [[0, 1], [-1, 0]]), x.dtype)
    highest = jax.lax.Precision.HIGHEST
    turned = jnp.matmul(x, p, precision=highest, preferred_element_type=jnp.float32)
    cos, sin = (_beside_heads(jnp.repeat(angle, 2, axis=-1)) for angle in rope)
    return x.astype(jnp.float32) * cos + turned * sin


def _beside_heads(angle: Float[Array, "n _"]) -> Array:
    """Return the angles with axes of size 1 for the batch and the heads."""
    return jnp.expand_dims(angle, (0, 3 - token_axis()))
