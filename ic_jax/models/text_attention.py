"""Attention with an additive bias, for the text encoders."""

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
    """Compute softmax(scale q k^T + bias) v per head, the softmax in float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: float32, per head or the same for all heads; -inf masks a key.
        scale: 1/sqrt(d) in CLIP, 1 in T5.
    """
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scale * scores + bias[None], axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)
