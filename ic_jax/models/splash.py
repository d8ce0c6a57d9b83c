"""Flash attention for TPUs (jax.experimental.pallas.ops.tpu.splash_attention)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LANES = 128  # of the vector unit: head sizes must be multiples of it, tokens are padded to them
BLOCKS = (1536, 512, 384, 256, 128)  # tokens per kernel block; the largest divisor is used
LARGEST_PRODUCT = 768  # keys of one product: a v5p has no on-chip memory for 1536 when training
LARGEST_BACKWARD = 512  # a TPU v4 has no on-chip memory for more
SHORTEST = 1024  # keys; with fewer the kernel is not faster

Shaped = Array | jax.ShapeDtypeStruct


_largest: ContextVar[int] = ContextVar("largest", default=BLOCKS[0])


@contextmanager
def blocks_up_to(tokens: int) -> Iterator[None]:
    """Compile forward kernels with blocks of at most `tokens`, to measure which size is best."""
    token = _largest.set(tokens)
    try:
        yield
    finally:
        _largest.reset(token)


def _block(count: int, largest: int) -> int:
    return next(size for size in BLOCKS if size <= largest and count % size == 0)


def splash_takes(q: Shaped, k: Shaped) -> bool:
    """Return whether the kernel supports the sizes and is faster for them."""
    return q.shape[-1] % LANES == 0 and min(q.shape[1], k.shape[1]) >= SHORTEST


def splash(
    q: Float[Array, "b h n d"], k: Float[Array, "b h m d"], v: Float[Array, "b h m d"]
) -> Float[Array, "b h n d"]:
    """Compute attention without materialising scores, for any number of tokens; differentiable."""
    # Imported here because Pallas takes a second to import.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        FullMask,
        MultiHeadMask,
        SegmentIds,
        make_splash_mha,
    )

    (_, h, n, d), m = q.shape, k.shape[2]
    rows, keys = (-(-count // LANES) * LANES for count in (n, m))
    block_q, block_kv = (_block(count, _largest.get()) for count in (rows, keys))
    backward_q, backward_kv = (_block(count, LARGEST_BACKWARD) for count in (rows, keys))
    sizes = BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=min(block_kv, LARGEST_PRODUCT),
        block_q_dkv=backward_q,
        block_kv_dkv=backward_kv,
        block_kv_dkv_compute=backward_kv,
        block_q_dq=backward_q,
        block_kv_dq=backward_kv,
    )
    mask = MultiHeadMask([FullMask((rows, keys))] * h)
    kernel = make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    padding = None  # segment ids, so that no query attends to padding
    if (rows, keys) != (n, m):
        padding = SegmentIds(
            (jnp.arange(rows) >= n).astype(jnp.int32), (jnp.arange(keys) >= m).astype(jnp.int32)
        )

    def padded(x: Array, length: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    scaled = (q.astype(jnp.float32) / math.sqrt(d)).astype(q.dtype)
    batch = (padded(scaled, rows), padded(k, keys), padded(v, keys))
    return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=padding))(*batch)[:, :, :n]
