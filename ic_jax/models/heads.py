"""Axis order of FLUX's queries, keys and values, by the platform that a program is compiled for.

A projection writes [b, n, h, d], which cuDNN reads. Splash attention reads [b, h, n, d]: except on
GPUs FLUX projects to heads first and stays there up to the projection back, so that nothing is
transposed in between.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ic_jax.models import attention
from ic_jax.models.attention import Heads, Split, split_heads
from ic_jax.models.layers import Linear, LinearOfParts
from ic_jax.models.target import platform


def heads_first() -> bool:
    """Return whether queries, keys and values are [b, h, n, d] instead of [b, n, h, d]."""
    return platform() != "gpu"


def token_axis() -> int:
    """Return the axis of the tokens in queries, keys and values."""
    return 2 if heads_first() else 1


def to_heads(linear: Linear, x: Float[Array, "b n c"], head_dim: int) -> Heads:
    """Project tokens to heads."""
    return split_into_heads(linear(x), head_dim)


def split_into_heads(x: Float[Array, "b n c"], head_dim: int) -> Heads:
    """Split the channels into heads."""
    y = split_heads(x, head_dim)
    return y.swapaxes(1, 2) if heads_first() else y


def merge_heads(x: Heads) -> Float[Array, "b n c"]:
    """Merge the heads into channels."""
    return attention.merge_heads(x.swapaxes(1, 2) if heads_first() else x)


def from_heads(linear: Linear, x: Heads) -> Float[Array, "b n c"]:
    """Project heads to tokens."""
    return linear(merge_heads(x))


def from_heads_and_channels(
    linear: Linear | LinearOfParts, x: Heads, channels: Float[Array, "b n e"]
) -> Float[Array, "b n c"]:
    """Project heads and, beside them, channels to tokens."""
    parts = merge_heads(x), channels
    return linear(jnp.concatenate(parts, axis=-1)) if isinstance(linear, Linear) else linear(*parts)


def over_heads(x: Float[Array, "*b n"]) -> Float[Array, "*b _ _ 1"]:
    """Give numbers of tokens the axes of heads, so that they apply to all of a token."""
    return jnp.expand_dims(x, (-3, -1) if heads_first() else (-2, -1))


def attend(q: Heads, k: Heads, v: Heads, *, split: Split) -> Heads:
    """Compute attention, see `ic_jax.models.attention.attention`."""
    return attention.attention(q, k, v, split=split, heads_first=heads_first())
