"""Attention without mask: one function with named backends, for one device or a mesh.

FLUX and the adapter need no mask or bias, which would exclude the fast kernels. The text encoders
need one and use `ic_jax.models.text_attention`.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float

from ic_jax.models.splash import splash, splash_takes
from ic_jax.models.target import device, platform
from ic_jax.sharding import ShardingError, activation_spec, current

Backend = Literal["cudnn", "splash", "xla", "blocked"]
Split = Literal["none", "queries", "both"]
Shaped = Array | jax.ShapeDtypeStruct

BLOCK = 4096  # queries
MAX_SCORES = 4 * 2**30  # bytes that the scores may take on an accelerator


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    backend: Backend | None = None,
    *,
    split: Split = "none",
) -> Float[Array, "b n h d"]:
    """Compute softmax(q k^T / sqrt(d)) v per head, the softmax in float32.

    On a mesh, rows are sharded over the axes of the batch and heads over `tensor`; every device
    calls the backend for its own shard.

    Args:
        q: queries; n may differ from m.
        k: keys.
        v: values.
        backend: "cudnn" (NVIDIA, bfloat16 or float16), "splash" (TPU), "xla" (any
            platform; materialises all scores), "blocked" (a head and 4096 queries at a time: little
            memory, fastest on a CPU). By default the best one for the platform and the size.
        split: tokens that are sharded over the context axis of the mesh: none, those of the
            queries, or those of keys and values as well.

    Raises:
        ShardingError: heads or tokens are not divisible by the axes of the mesh.
    """
    mesh = current()
    if mesh is None:
        return _on_one_device(q, k, v, backend)
    return _on_mesh(mesh, q, k, v, backend, split)


def _on_mesh(
    mesh: AbstractMesh, q: Array, k: Array, v: Array, backend: Backend | None, split: Split
) -> Array:
    parts, tokens = mesh.shape["context"], "tokens"
    across = split == "both" and parts > 1

    def local(q: Array, k: Array, v: Array) -> Array:
        if not across:
            return _on_one_device(q, k, v, backend)
        # From all heads of a share of the tokens to all tokens of a share of the heads.
        q, k, v = (jax.lax.all_to_all(x, "context", 2, 1, tiled=True) for x in (q, k, v))
        out = _on_one_device(q, k, v, backend)
        return jax.lax.all_to_all(out, "context", 1, 2, tiled=True)

    q_axes = ("batch", None if split == "none" else tokens, "heads", None)
    k_axes = ("batch", tokens if split == "both" else None, "heads", None)
    q_spec, k_spec = (activation_spec(mesh, *x) for x in ((q.shape, q_axes), (k.shape, k_axes)))
    split_heads = mesh.shape["tensor"] if q_spec[2] else 1
    if across and (q_spec[1] is None or q.shape[2] // split_heads % parts):
        raise ShardingError(
            f"attention: {q.shape[1]} tokens and {q.shape[2]} heads do not divide by tensor="
            f"{mesh.shape['tensor']} and context={parts}; take another mesh"
        )
    specs = (q_spec, k_spec, k_spec)
    # Pallas kernels do not declare over which axes their results vary.
    return jax.shard_map(local, in_specs=specs, out_specs=q_spec, check_vma=False)(q, k, v)


def _on_one_device(q: Array, k: Array, v: Array, backend: Backend | None) -> Array:
    match backend or _default_backend(q, k):
        case "cudnn":
            return _fused(q, k, v, "cudnn")
        case "splash":
            return splash(q, k, v)
        case "xla":
            return _dense(q, k, v)
        case "blocked":
            return _blocked(q, k, v)
        case other:
            raise ValueError(f"attention backend {other!r} is none of {get_args(Backend)}")


def _default_backend(q: Shaped, k: Shaped) -> Backend:
    (b, n, h, _), m = q.shape, k.shape[1]
    if _cudnn_takes(q):
        return "cudnn"
    if platform() == "tpu" and splash_takes(q, k):
        return "splash"
    scores = 4 * b * h * n * m  # bytes
    return "blocked" if platform() == "cpu" or scores > MAX_SCORES else "xla"


def _cudnn_takes(q: Shaped) -> bool:
    """Return whether cuDNN applies: Ampere or newer, half precision, head size 8, 16, ... 128."""
    head_dim = q.shape[-1]
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and head_dim <= 128 and head_dim % 8 == 0
    if not fits or platform() != "gpu":
        return False
    capability = getattr(device(), "compute_capability", "")  # "9.0"; AMD's reads "gfx942"
    return capability[:1].isdigit() and float(capability) >= 8.0


def _fused(q: Array, k: Array, v: Array, implementation: Literal["cudnn", "xla"]) -> Array:
    """Call JAX's attention with even numbers of tokens; cuDNN has no gradient for odd ones.

    An odd number is padded by one token, which the true length excludes: a mask within the kernel,
    not one in memory.
    """
    n, m = q.shape[1], k.shape[1]
    if n % 2 == m % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)

    def even(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    return jax.nn.dot_product_attention(
        *map(even, (q, k, v)),
        query_seq_lengths=jnp.full(q.shape[0], n, jnp.int32),
        key_value_seq_lengths=jnp.full(q.shape[0], m, jnp.int32),
        implementation=implementation,
    )[:, :n]


def _dense(q: Array, k: Array, v: Array) -> Array:
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _blocked(q: Array, k: Array, v: Array) -> Array:
    b, n, h, d = q.shape

    def one_head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv  # n d, m d, m d

        def rows(q: Array) -> Array:  # one row of queries, or a matrix
            scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores / math.sqrt(d), axis=-1).astype(v.dtype)
            return weights @ v

        return rows(q) if n <= BLOCK else jax.lax.map(rows, q, batch_size=BLOCK)

    def heads_first(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(b * h, x.shape[1], -1)  # b h, n, d

    out = jax.lax.map(one_head, (heads_first(q), heads_first(k), heads_first(v)))
    return out.reshape(b, h, n, -1).swapaxes(1, 2)  # b n h d


def split_heads(x: Float[Array, "b n hd"], head_dim: int) -> Float[Array, "b n h d"]:
    """Split the channels into heads."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)


def merge_heads(x: Float[Array, "b n h d"]) -> Float[Array, "b n hd"]:
    """Merge the heads into channels."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
