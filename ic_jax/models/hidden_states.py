"""Run of an encoder's blocks that returns chosen hidden states."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ic_jax.models.layers import Stack
from ic_jax.sharding import shard_batch


def run_blocks(
    stack: Stack, count: int, x: Float[Array, "b n d"], layers: tuple[int, ...]
) -> tuple[Float[Array, "b n d"], tuple[Float[Array, "b n d"], ...]]:
    """Apply all `count` blocks of `stack`; also return the hidden states numbered `layers`.

    Number 0 is `x` itself, number i the output of the i-th block (transformers'
    `hidden_states[i]`). Only the chosen hidden states take memory, not all `count`.

    Raises:
        ValueError: a number below 0 or above `count`.
    """
    if any(not 0 <= i <= count for i in layers):
        raise ValueError(f"hidden states {layers} asked of an encoder that has 0 to {count}")
    numbers_out = jnp.array(layers, jnp.int32)[:, None, None, None]

    def step(block, carry, number):
        x, states = carry
        x = shard_batch(block(shard_batch(x)))
        return (x, jnp.where(numbers_out == number, x, states)), None

    states = jnp.broadcast_to(x, (len(layers), *x.shape))  # already correct for number 0
    numbers = jnp.arange(1, count + 1, dtype=jnp.int32)
    (x, states), _ = stack.scan(step, (x, states), numbers)
    return x, tuple(states)
