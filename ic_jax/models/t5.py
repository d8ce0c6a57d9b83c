"""T5 v1.1 encoder: the prompt embeddings of FLUX (transformers' T5EncoderModel).

Parameters have transformers' names, with one exception: the relative attention bias, which all
blocks share, is in block 0 there (`encoder.block.0.layer.0.SelfAttention.relative_attention_bias`)
and beside the blocks here.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ic_jax.config import T5Config
from ic_jax.models.attention import merge_heads, split_heads
from ic_jax.models.layers import Embedding, Linear, RMSNorm, Stack, gelu_tanh
from ic_jax.models.text_attention import biased_attention
from ic_jax.sharding import shard_batch


class T5Encoder(nnx.Module):
    """Prompt ids -> one embedding per id; attends to padding, as in the training of FLUX."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        axes = (None, "width")
        self.shared = Embedding(config.vocab_size, config.d_model, axes=axes, rngs=rngs)
        self.encoder = Blocks(config, rngs=rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        return self.encoder(self.shared(ids))


class Blocks(nnx.Module):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        def make(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        buckets = config.relative_attention_num_buckets
        self.block = Stack(make, config.num_layers, rngs=rngs)
        self.relative_attention_bias = Embedding(
            buckets, config.num_heads, axes=(None, None), rngs=rngs
        )
        self.final_layer_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.buckets = buckets
        self.max_distance = config.relative_attention_max_distance

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        bias = self.bias(x.shape[1])

        def step(block: Block, x: Array, _: None) -> tuple[Array, None]:
            return shard_batch(block(shard_batch(x), bias)), None

        x, _ = self.block.scan(step, x)
        return self.final_layer_norm(x)

    def bias(self, n: int) -> Float[Array, "h n n"]:
        """Return the bias of each head for query i and key j, a function of j - i."""
        buckets = relative_buckets(np.arange(1 - n, n), self.buckets, self.max_distance)
        by_distance = self.relative_attention_bias(jnp.asarray(buckets)).astype(jnp.float32)
        distance = jnp.arange(n)[None, :] - jnp.arange(n)[:, None]
        return by_distance.T[:, distance + n - 1]


def relative_buckets(
    distance: Int[np.ndarray, "m"], buckets: int, max_distance: int
) -> Int[np.ndarray, "m"]:
    """Return the bucket of each distance from query to key (T5, arXiv 1910.10683, section 2.1).

    Half of the buckets are for keys after the query. In each half, the first half of the buckets
    holds one distance each; the others widen logarithmically up to `max_distance`, and the last
    holds all distances beyond. NumPy computes them while tracing, because the logarithm of an
    accelerator may round to the other side of a boundary.
    """
    half = buckets // 2
    exact = half // 2
    size = np.abs(distance)
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    wide = exact + (ratio / math.log(max_distance / exact) * (half - exact)).astype(np.int32)
    bucket = np.where(size < exact, size, np.minimum(wide, half - 1))
    return (bucket + half * (distance > 0)).astype(np.int32)


class Block(nnx.Module):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.layer = nnx.Dict(
            {"0": AttentionLayer(config, rngs=rngs), "1": FeedForwardLayer(config, rngs=rngs)}
        )

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "h n n"]
    ) -> Float[Array, "b n d"]:
        x = x + self.layer["0"](x, bias)
        return x + self.layer["1"](x)


class AttentionLayer(nnx.Module):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.layer_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.SelfAttention = SelfAttention(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "h n n"]
    ) -> Float[Array, "b n d"]:
        return self.SelfAttention(self.layer_norm(x), bias)


class SelfAttention(nnx.Module):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        d, inner = config.d_model, config.num_heads * config.d_kv

        def project_in() -> Linear:
            return Linear(d, inner, axes=("width", None), bias=False, rngs=rngs)

        self.q = project_in()
        self.k = project_in()
        self.v = project_in()
        self.o = Linear(inner, d, axes=(None, "width"), bias=False, rngs=rngs)
        self.head_dim = config.d_kv

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "h n n"]
    ) -> Float[Array, "b n d"]:
        q, k, v = (split_heads(project(x), self.head_dim) for project in (self.q, self.k, self.v))
        # No 1/sqrt(d): T5 trains with it folded into the initial weights.
        return self.o(merge_heads(biased_attention(q, k, v, bias, scale=1.0)))


class FeedForwardLayer(nnx.Module):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.layer_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.DenseReluDense = GatedFeedForward(config.d_model, config.d_ff, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.DenseReluDense(self.layer_norm(x))


class GatedFeedForward(nnx.Module):
    """wo(gelu(wi_0(x)) * wi_1(x)), published as DenseReluDense."""

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        self.wi_0 = Linear(features, hidden, axes=("width", None), bias=False, rngs=rngs)
        self.wi_1 = Linear(features, hidden, axes=("width", None), bias=False, rngs=rngs)
        self.wo = Linear(hidden, features, axes=(None, "width"), bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.wo(gelu_tanh(self.wi_0(x)) * self.wi_1(x))
