"""Running an encoder's blocks while keeping some of the hidden states between them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ic_jax.models.layers import Stack
from ic_jax.sharding import shard_batch


def run_blocks(
    stack: Stack, count: int, x: Float[Array, "b n d"], layers: tuple[int, ...]
) -> tuple[Float[Array, "b n d"], tuple[Float[Array, "b n d"], ...]]:
    """Apply all `count` blocks of `stack`; also return the hidden states numbered `layers`.

    Number 0 is `x` itself, number i the output of the i-th block (transformers'
    `hidden_states[i]`). Only those asked for are held, not all `count` of them.

    Raises:
        ValueError: a number below 0 or above `count`.
    """
    if any(not 0 <= i <= count for i in layers):
        raise ValueError(f"hidden states {layers} asked of an encoder that has 0 to {count}")
    wanted = jnp.array(layers, jnp.int32)[:, None, None, None]

    def step(block, carry, number):
        x, kept = carry
        x = shard_batch(block(shard_batch(x)))
        return (x, jnp.where(wanted == number, x, kept)), None

    kept = jnp.broadcast_to(x, (len(layers), *x.shape))  # already right for number 0
    numbers = jnp.arange(1, count + 1, dtype=jnp.int32)
    (x, kept), _ = stack.scan(step, (x, kept), numbers)
    return x, tuple(kept)
