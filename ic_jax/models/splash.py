"""JAX's flash attention for TPUs (jax.experimental.pallas.ops.tpu.splash_attention)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LANES = 128  # of a TPU's vector unit: head sizes are multiples of it, tokens are padded to them
BLOCKS = (512, 384, 256, 128)  # tokens that a kernel takes at a time, the largest that divides
SHORTEST = 1024  # keys; fewer are as quick without a kernel

Shaped = Array | jax.ShapeDtypeStruct


def splash_takes(q: Shaped, k: Shaped) -> bool:
    return q.shape[-1] % LANES == 0 and min(q.shape[1], k.shape[1]) >= SHORTEST


def splash(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]
) -> Float[Array, "b n h d"]:
    """Attention that holds no scores; differentiable. Any number of tokens."""
    # Imported where it is used: Pallas takes a second that a CPU need not spend.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        FullMask,
        MultiHeadMask,
        SegmentIds,
        make_splash_mha,
    )

    (_, n, h, d), m = q.shape, k.shape[1]
    rows, keys = (-(-count // LANES) * LANES for count in (n, m))
    own, other = (next(b for b in BLOCKS if count % b == 0) for count in (rows, keys))
    sizes = BlockSizes(
        block_q=own,
        block_kv=other,
        block_kv_compute=other,
        block_q_dkv=own,
        block_kv_dkv=other,
        block_kv_dkv_compute=other,
        block_q_dq=own,
        block_kv_dq=other,
    )
    mask = MultiHeadMask([FullMask((rows, keys))] * h)
    kernel = make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    padded = None  # keys that are padding belong to no query
    if (rows, keys) != (n, m):
        padded = SegmentIds(
            (jnp.arange(rows) >= n).astype(jnp.int32), (jnp.arange(keys) >= m).astype(jnp.int32)
        )

    def heads_first(x: Array, length: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
        return x.swapaxes(1, 2)  # b h n d

    scaled = (q.astype(jnp.float32) / math.sqrt(d)).astype(q.dtype)
    batch = (heads_first(scaled, rows), heads_first(k, keys), heads_first(v, keys))
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=padded))(*batch)
    return out[:, :, :n].swapaxes(1, 2)
