"""Attention without mask: one function with named backends, for one device or a mesh.

FLUX and the adapter need no mask or bias, which would exclude the fast kernels. The text encoders
need one and use `ic_jax.models.text_attention`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float

from ic_jax.models.splash import splash, splash_takes
from ic_jax.models.target import device, platform
from ic_jax.sharding import ShardingError, activation_spec, current

Backend = Literal["cudnn", "splash", "xla", "blocked"]
Split = Literal["none", "queries", "both"]
Heads = Float[Array, "b _ _ hd"]  # b n h hd, or b h n hd where heads come first
Shaped = Array | jax.ShapeDtypeStruct

BLOCK = 4096  # queries
CPU_BLOCK = 512  # whose scores stay in a core's own cache
MAX_SCORES = 4 * 2**30  # bytes that the scores may take on an accelerator


def attention(
    q: Heads,
    k: Heads,
    v: Heads,
    backend: Backend | None = None,
    *,
    split: Split = "none",
    heads_first: bool = False,
) -> Heads:
    """Compute softmax(q k^T / sqrt(d)) v per head, the softmax in float32.

    On a mesh, rows are sharded over the axes of the batch and heads over `tensor`; every device
    calls the backend for its own shard.

    Args:
        q: queries; n may differ from m.
        k: keys.
        v: values.
        backend: "cudnn" (NVIDIA, bfloat16 or float16), "splash" (TPU), "xla" (any
            platform; materialises all scores), "blocked" (some queries of a head at a time: little
            memory, fastest on a CPU). By default the best one for the platform and the size.
        split: tokens that are sharded over the context axis of the mesh: none, those of the
            queries, or those of keys and values as well.
        heads_first: the axes of all arrays are [b, h, n, d] instead of [b, n, h, d].

    Raises:
        ShardingError: heads or tokens are not divisible by the axes of the mesh.
    """
    mesh = current()
    if mesh is None:
        return _on_one_device(q, k, v, backend, heads_first)
    return _on_mesh(mesh, q, k, v, backend, split, heads_first)


def _on_mesh(
    mesh: AbstractMesh,
    q: Array,
    k: Array,
    v: Array,
    backend: Backend | None,
    split: Split,
    heads_first: bool,
) -> Array:
    parts, n, h = mesh.shape["context"], *((2, 1) if heads_first else (1, 2))
    across = split == "both" and parts > 1

    def local(q: Array, k: Array, v: Array) -> Array:
        if not across:
            return _on_one_device(q, k, v, backend, heads_first)
        # From all heads of a share of the tokens to all tokens of a share of the heads.
        q, k, v = (jax.lax.all_to_all(x, "context", h, n, tiled=True) for x in (q, k, v))
        out = _on_one_device(q, k, v, backend, heads_first)
        return jax.lax.all_to_all(out, "context", n, h, tiled=True)

    def spec(x: Array, tokens: str | None) -> PartitionSpec:
        names = (tokens, "heads")
        return activation_spec(mesh, x.shape, ("batch", names[n - 1], names[h - 1], None))

    q_spec = spec(q, None if split == "none" else "tokens")
    k_spec = spec(k, "tokens" if split == "both" else None)
    split_heads = mesh.shape["tensor"] if q_spec[h] else 1
    if across and (q_spec[n] is None or q.shape[h] // split_heads % parts):
        raise ShardingError(
            f"attention: {q.shape[n]} tokens and {q.shape[h]} heads do not divide by tensor="
            f"{mesh.shape['tensor']} and context={parts}; take another mesh"
        )
    specs = (q_spec, k_spec, k_spec)
    # Pallas kernels do not declare over which axes their results vary.
    return jax.shard_map(local, in_specs=specs, out_specs=q_spec, check_vma=False)(q, k, v)


def _on_one_device(
    q: Array, k: Array, v: Array, backend: Backend | None, heads_first: bool
) -> Array:
    shapes = (_tokens_first(x) if heads_first else x for x in (q, k))
    backend = backend or _default_backend(*shapes)
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is none of {tuple(BACKENDS)}")
    if heads_first == (backend != "cudnn"):
        return BACKENDS[backend](q, k, v)
    return BACKENDS[backend](*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)


def _tokens_first(x: Array) -> jax.ShapeDtypeStruct:
    b, h, n, d = x.shape
    return jax.ShapeDtypeStruct((b, n, h, d), x.dtype)


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


def _dense(
    q: Float[Array, "b h n d"], k: Float[Array, "b h m d"], v: Float[Array, "b h m d"]
) -> Float[Array, "b h n d"]:
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", weights, v)


def _blocked(
    q: Float[Array, "b h n d"], k: Float[Array, "b h m d"], v: Float[Array, "b h m d"]
) -> Float[Array, "b h n d"]:
    n, d = q.shape[2:]
    most = CPU_BLOCK if platform() == "cpu" else BLOCK
    block = math.ceil(n / math.ceil(n / most))

    def one_head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv  # n d, m d, m d

        def rows(q: Array) -> Array:  # one row of queries, or a matrix
            scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32)
            largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
            weights = jnp.exp((scores - largest) / math.sqrt(d))
            out = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            # Divided last, in a pass over d numbers of a query in place of m.
            return (out / weights.sum(-1, keepdims=True)).astype(q.dtype)

        return rows(q) if n <= block else jax.lax.map(rows, q, batch_size=block)

    heads = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))  # b h, n, d
    return jax.lax.map(one_head, tuple(heads)).reshape(q.shape)


# Functions of queries, keys and values; cuDNN's takes tokens first, the others heads first.
BACKENDS: dict[Backend, Callable[[Array, Array, Array], Array]] = {
    "cudnn": partial(_fused, implementation="cudnn"),
    "splash": splash,
    "xla": _dense,
    "blocked": _blocked,
}


def split_heads(x: Float[Array, "b n hd"], head_dim: int) -> Float[Array, "b n h d"]:
    """Split the channels into heads."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)


def merge_heads(x: Float[Array, "b n h d"]) -> Float[Array, "b n hd"]:
    """Merge the heads into channels."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
