"""Text encoders with random weights: to train with FLUX, or to stay so. Words stay apart in them,
and FLUX learns to read them.

The library draws tables of embeddings small, as models that are to be trained want it. Not
trained, such a table would drown in what the blocks add, so here they are drawn at unit size.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from ic_jax.config import ClipConfig, T5Config
from ic_jax.models.clip import ClipText
from ic_jax.models.t5 import T5Encoder

UNIT = 50.0  # the library's 0.02 times this is 1


def text_encoders(t5: T5Config, clip: ClipConfig, seed: int) -> tuple[T5Encoder, ClipText]:
    """T5 keeps every word apart; CLIP's pooled state is a mixture of all of them."""
    words = T5Encoder(t5, rngs=nnx.Rngs(seed))
    _scale(words.shared.weight, UNIT)
    pooled = ClipText(clip, rngs=nnx.Rngs(seed + 1))
    tokens = pooled.text_model.embeddings.token_embedding.weight
    _scale(tokens, UNIT)
    # The end token's own embedding is the same for every prompt; without it the words are all
    # that is left in the state that is pooled.
    tokens.set_value(tokens[...].at[-1].set(0))
    return words, pooled


def read_neighbours(words: T5Encoder) -> None:
    """Let the first three heads begin with the words next to each word, for training.

    T5 does not divide scores by the root of the head's size; queries are drawn that much smaller
    instead (arXiv 1910.10683). Drawn as the library does, they tie each head to a few words
    wherever those stand, and the bias of distances is hardly learnt: asked for a green shirt and
    black trousers, FLUX drew a black shirt and green trousers.
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
