"""Text encoders with random weights, to be trained with FLUX or to stay frozen.

The library initialises embedding tables with small values, which suits training. In a frozen
encoder such a table would be negligible beside what the blocks add, and words would be
indistinguishable; so here embeddings start at unit size.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from ic_jax.config import ClipConfig, T5Config
from ic_jax.models.clip import ClipText
from ic_jax.models.t5 import T5Encoder

TO_UNIT = 50.0  # the library's standard deviation is 0.02


def text_encoders(t5: T5Config, clip: ClipConfig, seed: int) -> tuple[T5Encoder, ClipText]:
    """Return a T5 whose words stay distinct, and a CLIP whose pooled state mixes all words."""
    words = T5Encoder(t5, rngs=nnx.Rngs(seed))
    _scale(words.shared.weight, TO_UNIT)
    pooled = ClipText(clip, rngs=nnx.Rngs(seed + 1))
    tokens = pooled.text_model.embeddings.token_embedding.weight
    _scale(tokens, TO_UNIT)
    # The end token's own embedding is the same for every prompt; at zero, the pooled state
    # depends on the words alone.
    tokens.set_value(tokens[...].at[-1].set(0))
    return words, pooled


def read_neighbours(words: T5Encoder) -> None:
    """Initialise the first three heads to attend to neighbouring words, for training.

    T5 does not divide scores by the square root of the head size; its queries are initialised
    that much smaller instead (arXiv 1910.10683). With the library's initialisation each head
    attends to a few words wherever they stand, and hardly learns the bias of distances: asked for
    a green shirt and black trousers, FLUX drew a black shirt and green trousers.
    """
    _scale(words.encoder.block.blocks.layer["0"].SelfAttention.q.kernel, words.config.d_kv**-0.5)
    after = words.config.relative_attention_num_buckets // 2  # the first bucket of later words
    bias = words.encoder.relative_attention_bias.weight
    table = bias[...].at[after + 1, 0].add(4)
    table = table.at[after + 2 : after + 4, 1].add(3)
    bias.set_value(table.at[1:3, 2].add(3))


def _scale(parameter: Any, factor: float) -> None:
    value: Array = parameter[...]
    parameter.set_value(jnp.asarray(factor * value))
