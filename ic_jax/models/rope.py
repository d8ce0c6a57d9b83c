"""Rotary position embedding over several axes (black-forest-labs/flux math.py and layers.py)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ic_jax.config import FluxConfig
from ic_jax.models.attention import Heads
from ic_jax.models.heads import token_axis
from ic_jax.models.layers import RMSNorm
from ic_jax.models.streams import concat_streams, to_stream_order
from ic_jax.models.target import in_memory, platform


class Rope(NamedTuple):
    """Rotary table of text and then image tokens: one angle per pair of channels.

    `in_stream_order` returns it in the form that `rotate` reads.
    """

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


def in_stream_order(rope: Rope, text_tokens: int) -> Rope:
    """Return a table in the order of a stream; on a TPU with one angle per channel."""
    rope = Rope(*(to_stream_order(jnp.asarray(x), text_tokens) for x in rope))
    if platform() != "tpu":
        return rope
    return in_memory(Rope(*(jnp.repeat(x, 2, axis=-1) for x in rope)))


def normalize_and_rotate(streams: Sequence[tuple[Heads, RMSNorm]], rope: Rope) -> Heads:
    """Normalise queries or keys, those of each stream by its norm, join the streams and rotate."""
    xs, norms = zip(*streams, strict=True)
    function = _rotated_then_scaled if platform() == "tpu" else _normalized_then_rotated
    return function(xs, norms, rope)


def _normalized_then_rotated(xs: Sequence[Heads], norms: Sequence[RMSNorm], rope: Rope) -> Heads:
    normalized = [norm(x) for x, norm in zip(xs, norms, strict=True)]
    return rotate(_joined(normalized, token_axis()), rope)


@jax.custom_vjp
def _rotated_then_scaled(xs: Sequence[Heads], norms: Sequence[RMSNorm], rope: Rope) -> Heads:
    """Scale each token after its rotation, so that the product reads what a projection wrote.

    The weights of the norm, of channels, are in the table.
    """
    x = _joined(xs, token_axis())
    scale = _joined([norm.inverse_rms(x) for x, norm in zip(xs, norms, strict=True)], token_axis())
    weights = [norm.weight[...].astype(jnp.float32) for norm in norms]
    swapped = [w.reshape(-1, 2)[:, ::-1].reshape(-1) for w in weights]

    lengths = [x.shape[token_axis()] for x in xs]

    def of_tokens(vectors: list[Array]) -> Array:
        rows = [jnp.tile(v[None], (n, 1)) for v, n in zip(vectors, lengths, strict=True)]
        return _joined(rows, 0)

    rope = Rope(rope.cos * of_tokens(weights), rope.sin * of_tokens(swapped))
    return (scale * _by_product(x, rope)).astype(x.dtype)


def _scaled_forward(*arguments: Any) -> tuple[Heads, Any]:
    return _rotated_then_scaled(*arguments), arguments


def _scaled_backward(arguments: Any, gradient: Heads) -> Any:
    return jax.vjp(_normalized_then_rotated, *arguments)[1](gradient)


_rotated_then_scaled.defvjp(_scaled_forward, _scaled_backward)


def _joined(streams: Sequence[Array], axis: int) -> Array:
    return streams[0] if len(streams) == 1 else concat_streams(streams[0], streams[1], axis)


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
    cos, sin = map(_beside_heads, rope)
    return x.astype(jnp.float32) * cos + turned * sin


def _beside_heads(angle: Float[Array, "n _"]) -> Array:
    """Return the angles with axes of size 1 for the batch and the heads."""
    return jnp.expand_dims(angle, (0, 3 - token_axis()))
