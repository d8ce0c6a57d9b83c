"""Attention with an additive bias, which only the text encoders need."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def biased_attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    bias: Float[Array, "#h n n"],
    *,
    scale: float,
) -> Float[Array, "b n h d"]:
    """softmax(scale q k^T + bias) v per head, the softmax in float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: float32, one for each head or one for all heads; -inf hides a key from a query.
        scale: 1/sqrt(d) in CLIP, 1 in T5.
    """
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scale * scores + bias[None], axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)
