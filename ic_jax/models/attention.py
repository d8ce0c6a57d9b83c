"""Attention without a mask, in one function with named backends.

No mask or bias ever reaches it: FLUX and the adapter need none, and a mask would shut out
the fast kernels. The text encoders, which need one, keep a few lines of their own.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Backend = Literal["cudnn", "xla", "blocked"]
Shaped = Array | jax.ShapeDtypeStruct

BLOCK = 4096  # queries
MAX_SCORES = 4 * 2**30  # bytes that scores may take at once off the CPU


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
            "blocked" (a head and 4096 queries at a time: little memory, fastest on a CPU).
            By default the best one for the platform that JAX runs on and for the size.
    """
    match backend or _default_backend(q, k):
        case "cudnn":
            return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        case "xla":
            return _dense(q, k, v)
        case "blocked":
            return _blocked(q, k, v)
        case other:
            raise ValueError(f"attention backend {other!r} is none of 'cudnn', 'xla', 'blocked'")


_target: ContextVar[str | None] = ContextVar("target", default=None)


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Choose backends for "tpu", "gpu" or "cpu" though JAX runs on another one here."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def _platform() -> str:
    return _target.get() or jax.default_backend()


def _default_backend(q: Shaped, k: Shaped) -> Backend:
    (b, n, h, _), m = q.shape, k.shape[1]
    if _cudnn_takes(q):
        return "cudnn"
    scores = 4 * b * h * n * m  # bytes
    return "blocked" if _platform() == "cpu" or scores > MAX_SCORES else "xla"


def _cudnn_takes(q: Shaped) -> bool:
    """NVIDIA from Ampere on, half precision, head sizes that are multiples of 8 up to 128."""
    head_dim = q.shape[-1]
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and head_dim <= 128 and head_dim % 8 == 0
    if not fits or _platform() != "gpu":
        return False
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", "")  # "9.0"; AMD's reads "gfx942"
    return capability[:1].isdigit() and float(capability) >= 8.0


def _dense(q: Array, k: Array, v: Array) -> Array:
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _blocked(q: Array, k: Array, v: Array) -> Array:
    b, n, h, d = q.shape

    def one_head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv  # n d, m d, m d

        def rows(q: Array) -> Array:  # one row of queries, or a matrix of them
            scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores / math.sqrt(d), axis=-1).astype(v.dtype)
            return weights @ v

        return rows(q) if n <= BLOCK else jax.lax.map(rows, q, batch_size=BLOCK)

    def heads_first(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(b * h, x.shape[1], -1)  # b h, n, d

    out = jax.lax.map(one_head, (heads_first(q), heads_first(k), heads_first(v)))
    return out.reshape(b, h, n, -1).swapaxes(1, 2)  # b n h d


def split_heads(x: Float[Array, "b n hd"], head_dim: int) -> Float[Array, "b n h d"]:
    return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)


def merge_heads(x: Float[Array, "b n h d"]) -> Float[Array, "b n hd"]:
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
