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
    _scale(words.shared.weight)
    pooled = ClipText(clip, rngs=nnx.Rngs(seed + 1))
    tokens = pooled.text_model.embeddings.token_embedding.weight
    _scale(tokens)
    # The end token's own embedding is the same for every prompt; without it the words are all
    # that is left in the state that is pooled.
    tokens.set_value(tokens[...].at[-1].set(0))
    return words, pooled


def _scale(table: Any) -> None:
    value: Array = table[...]
    table.set_value(jnp.asarray(UNIT * value))
