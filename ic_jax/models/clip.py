"""CLIP text encoder: the pooled prompt embedding of FLUX (transformers' CLIPTextModel)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ic_jax.config import ClipConfig
from ic_jax.models.attention import merge_heads, split_heads
from ic_jax.models.layers import (
    Embedding,
    LayerNorm,
    Linear,
    Mlp,
    Stack,
    gelu_erf,
    gelu_tanh,
    quick_gelu,
)
from ic_jax.models.text_attention import biased_attention
from ic_jax.sharding import shard_batch

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu_erf}  # all others are the tanh's


class ClipText(nnx.Module):
    """Prompt ids -> pooled embedding: the normalised last hidden state at the end token."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.text_model = TextModel(config, rngs=rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b d"]:
        """Encode start token, prompt, end token and padding; n is at most the position table's."""
        x = self.text_model(ids)
        # argmax returns the first of equal values: CLIP pads with its end token.
        is_end = ids if self.config.eos_token_id == 2 else ids == self.config.eos_token_id
        return x[jnp.arange(ids.shape[0]), jnp.argmax(is_end, axis=-1)]


class TextModel(nnx.Module):
    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        return self.final_layer_norm(self.encoder(self.embeddings(ids)))


class Embeddings(nnx.Module):
    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        d = config.hidden_size
        positions = config.max_position_embeddings
        self.token_embedding = Embedding(config.vocab_size, d, axes=(None, "width"), rngs=rngs)
        self.position_embedding = Embedding(positions, d, axes=(None, "width"), rngs=rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        return self.token_embedding(ids) + self.position_embedding.weight[None, : ids.shape[1]]


class Encoder(nnx.Module):
    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        def make(rngs: nnx.Rngs) -> EncoderLayer:
            return EncoderLayer(config, rngs=rngs)

        self.layers = Stack(make, config.num_hidden_layers, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        n = x.shape[1]
        causal = jnp.where(jnp.tri(n, dtype=bool), 0.0, -jnp.inf)[None]

        def step(layer: EncoderLayer, x: Array, _: None) -> tuple[Array, None]:
            return shard_batch(layer(shard_batch(x), causal)), None

        x, _ = self.layers.scan(step, x)
        return x


class EncoderLayer(nnx.Module):
    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        d, eps = config.hidden_size, config.layer_norm_eps
        activation = ACTIVATIONS.get(config.hidden_act, gelu_tanh)
        self.layer_norm1 = LayerNorm(d, eps=eps)
        self.self_attn = SelfAttention(d, config.num_attention_heads, rngs=rngs)
        self.layer_norm2 = LayerNorm(d, eps=eps)
        self.mlp = Mlp(d, config.intermediate_size, activation=activation, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "1 n n"]
    ) -> Float[Array, "b n d"]:
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class SelfAttention(nnx.Module):
    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs):
        def project_in() -> Linear:
            return Linear(features, features, axes=("width", None), rngs=rngs)

        self.q_proj = project_in()
        self.k_proj = project_in()
        self.v_proj = project_in()
        self.out_proj = Linear(features, features, axes=(None, "width"), rngs=rngs)
        self.head_dim = features // heads

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "1 n n"]
    ) -> Float[Array, "b n d"]:
        q, k, v = (
            split_heads(project(x), self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(
            merge_heads(biased_attention(q, k, v, bias, scale=self.head_dim**-0.5))
        )
