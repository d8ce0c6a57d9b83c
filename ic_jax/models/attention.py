"""Attention without a mask, in one function with named backends.

No mask or bias ever reaches it: FLUX and the adapter need none, and a mask would shut out
the fast kernels. The text encoders, which need one, keep a few lines of their own.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Backend = Literal["cudnn", "xla", "blocked"]


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    backend: Backend | None = None,
) -> Float[Array, "b n h d"]:
    """softmax(q k^T / sqrt(d)) v per head, the softmax in float32.

    Args:
        q: queries; n may differ from m.
        k: keys.
        v: values.
        backend: "cudnn" (NVIDIA, bfloat16 or float16), "xla" (anywhere; holds all scores),
            "blocked" (one head at a time: little memory, and the fastest on a CPU).
            By default the best one for the platform that JAX runs on.
    """
    match backend or _default_backend(q.dtype, q.shape[-1]):
        case "cudnn":
            return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        case "xla":
            return _dense(q, k, v)
        case "blocked":
            return _blocked(q, k, v)
        case other:
            raise ValueError(f"attention backend {other!r} is none of 'cudnn', 'xla', 'blocked'")


def _default_backend(dtype: jnp.dtype, head_dim: int) -> Backend:
    platform = jax.default_backend()
    if platform == "gpu" and dtype in (jnp.bfloat16, jnp.float16) and head_dim <= 128:
        return "cudnn"
    return "blocked" if platform == "cpu" else "xla"


def _dense(q: Array, k: Array, v: Array) -> Array:
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _blocked(q: Array, k: Array, v: Array) -> Array:
    b, _, h, _ = q.shape

    def one_head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv  # n d, m d, m d
        scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
        return weights @ v

    def heads_first(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(b * h, x.shape[1], -1)  # b h, n, d

    out = jax.lax.map(one_head, (heads_first(q), heads_first(k), heads_first(v)))
    return out.reshape(b, h, *out.shape[1:]).swapaxes(1, 2)  # b n h d


def split_heads(x: Float[Array, "b n hd"], head_dim: int) -> Float[Array, "b n h d"]:
    return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)


def merge_heads(x: Float[Array, "b n h d"]) -> Float[Array, "b n hd"]:
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
