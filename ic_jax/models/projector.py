"""Projector from subject features to subject tokens (published as `image_proj`).

It has two halves. `Projector.gather` mixes the features, independently of the timestep;
`Projector.resample` condenses the result into the tokens of a timestep. A sampler calls the first
once per picture and the second once for all its timesteps. `remat` chooses what the backward pass
recomputes (`ic_jax.models.layers.Remat`): the attention scores of the projector take several GB per
picture at the published sizes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ic_jax.config import AdapterConfig
from ic_jax.models.attention import attention, merge_heads, split_heads
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.layers import (
    EmbedMlp,
    LayerNorm,
    Linear,
    Mlp,
    Remat,
    Stack,
    gelu_erf,
    gelu_tanh,
    sinusoid,
)
from ic_jax.sharding import shard_batch

CROSS_FF_MULT = 4  # feed-forwards of the cross stacks; config.ff_mult is that of the resampler
STACK_EPS = 1e-6
RESAMPLER_EPS = 1e-5


class CrossAttention(nnx.Module):
    def __init__(self, features: int, head_dim: int, *, rngs: nnx.Rngs):
        def project() -> Linear:
            return Linear(features, features, axes=("width", None), bias=False, rngs=rngs)

        self.to_q, self.to_k, self.to_v = project(), project(), project()
        self.to_out = nnx.Dict({"0": Linear(features, features, axes=(None, "width"), rngs=rngs)})
        self.head_dim = head_dim

    def __call__(
        self, x: Float[Array, "b n d"], context: Float[Array, "b m d"]
    ) -> Float[Array, "b n d"]:
        q, k, v = (
            split_heads(y, self.head_dim)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out["0"](merge_heads(attention(q, k, v)))


class GatedFeedForward(nnx.Module):
    """GEGLU: the first half of the hidden channels times the GELU of the second half."""

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        up = nnx.Dict({"proj": Linear(features, 2 * hidden, axes=("width", None), rngs=rngs)})
        down = Linear(hidden, features, axes=(None, "width"), rngs=rngs)
        self.net: Any = nnx.Dict({"0": up, "2": down})

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        value, gate = jnp.split(self.net["0"]["proj"](x), 2, axis=-1)
        return self.net["2"](value * gelu_erf(gate))


class CrossBlock(nnx.Module):
    """Self-attention, cross-attention to an unnormalised context, feed-forward; pre-norm."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs):
        d, head_dim = config.inner_dim, config.attention_head_dim
        self.norm1 = LayerNorm(d, eps=STACK_EPS)
        self.attn1 = CrossAttention(d, head_dim, rngs=rngs)
        self.norm2 = LayerNorm(d, eps=STACK_EPS)
        self.attn2 = CrossAttention(d, head_dim, rngs=rngs)
        self.norm3 = LayerNorm(d, eps=STACK_EPS)
        self.ff = GatedFeedForward(d, CROSS_FF_MULT * d, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], context: Float[Array, "b m d"]
    ) -> Float[Array, "b n d"]:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class LatentAttention(nnx.Module):
    """Attention of latents to the tokens and to themselves, modulated by the timestep."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs):
        d, inner = config.dim, config.heads * config.dim_head
        self.norm1 = LayerNorm(d, eps=RESAMPLER_EPS)
        self.norm2 = LayerNorm(d, eps=RESAMPLER_EPS)
        self.to_q = Linear(d, inner, axes=("width", None), bias=False, rngs=rngs)
        self.to_kv = Linear(d, 2 * inner, axes=("width", None), bias=False, rngs=rngs)
        self.to_out = Linear(inner, d, axes=(None, "width"), bias=False, rngs=rngs)
        self.head_dim = config.dim_head

    def __call__(
        self,
        x: Float[Array, "b n d"],
        latents: Float[Array, "b q d"],
        shift: Float[Array, "b d"],
        scale: Float[Array, "b d"],
    ) -> Float[Array, "b q d"]:
        latents = self.norm2(latents) * (1 + scale[:, None]) + shift[:, None]
        context = jnp.concatenate([self.norm1(x), latents], axis=1)
        k, v = jnp.split(self.to_kv(context), 2, axis=-1)
        q, k, v = (split_heads(y, self.head_dim) for y in (self.to_q(latents), k, v))
        return self.to_out(merge_heads(attention(q, k, v)))


class ResamplerLayer(nnx.Module):
    """Layer of the resampler: attention "0", feed-forward "1", modulation "2" (a list on disk)."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs):
        d, hidden = config.dim, config.ff_mult * config.dim
        feed_forward = nnx.Dict(
            {
                "0": LayerNorm(d, eps=RESAMPLER_EPS),
                "1": Linear(d, hidden, axes=("width", None), bias=False, rngs=rngs),
                "3": Linear(hidden, d, axes=(None, "width"), bias=False, rngs=rngs),
            }
        )
        modulation = nnx.Dict({"1": Linear(d, 4 * d, axes=("width", None), rngs=rngs)})
        setattr(self, "0", LatentAttention(config, rngs=rngs))
        setattr(self, "1", feed_forward)
        setattr(self, "2", modulation)

    def __call__(
        self, x: Float[Array, "b n d"], latents: Float[Array, "b q d"], temb: Float[Array, "b d"]
    ) -> Float[Array, "b q d"]:
        attend, ff, modulation = (getattr(self, name) for name in "012")
        shift_a, scale_a, shift_f, scale_f = jnp.split(
            modulation["1"](jax.nn.silu(temb)), 4, axis=-1
        )
        latents = latents + attend(x, latents, shift_a, scale_a)
        y = ff["0"](latents) * (1 + scale_f[:, None]) + shift_f[:, None]
        return latents + ff["3"](gelu_erf(ff["1"](y)))


class Resampler(nnx.Module):
    """Timestep-aware Q-Former: `num_queries` learned latents attend to the tokens."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs):
        d = config.dim
        self.time_embedding = EmbedMlp(config.timestep_in_dim, d, rngs=rngs)
        self.proj_in = Linear(config.inner_dim, d, axes=(None, "width"), rngs=rngs)
        latents = jax.random.normal(rngs.params(), (1, config.num_queries, d)) * d**-0.5
        self.latents = nnx.Param(latents, axes=(None, None, "width"))
        self.layers = Stack(lambda rngs: ResamplerLayer(config, rngs=rngs), config.depth, rngs=rngs)
        self.proj_out = Linear(d, config.output_dim, axes=("width", None), rngs=rngs)
        self.norm_out = LayerNorm(config.output_dim, eps=RESAMPLER_EPS)
        self.time_channels = config.timestep_in_dim

    def __call__(
        self, x: Float[Array, "b n e"], timestep: Float[Array, "b"], *, remat: Remat = "none"
    ) -> tuple[Float[Array, "b q c"], Float[Array, "b d"]]:
        temb = self.time_embedding(sinusoid(timestep, self.time_channels).astype(x.dtype))
        x = self.proj_in(x) + temb[:, None]
        latents = self.latents[...].astype(x.dtype)
        latents = jnp.broadcast_to(latents, (x.shape[0], *latents.shape[1:]))

        def layer(layer: ResamplerLayer, latents: Array, _: None) -> tuple[Array, None]:
            return shard_batch(layer(x, shard_batch(latents), temb)), None

        latents, _ = self.layers.scan(layer, latents, remat=remat)
        return self.norm_out(self.proj_out(latents)), temb


class Projector(nnx.Module):
    """Projector from subject features to subject tokens."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs):
        d = config.inner_dim

        def stack() -> Stack:
            return Stack(lambda rngs: CrossBlock(config, rngs=rngs), config.num_layers, rngs=rngs)

        def mlp() -> Mlp:
            return Mlp(d, 2 * d, activation=gelu_tanh, rngs=rngs)

        self.cross_layer_blocks, self.cross_scale_blocks = stack(), stack()
        self.proj, self.proj_cross_layer, self.proj_cross_scale = mlp(), mlp(), mlp()
        self.resampler = Resampler(config, rngs=rngs)

    def gather(self, features: SubjectFeatures, *, remat: Remat = "none") -> Float[Array, "b m e"]:
        """Mix the features to tokens, [b, 1458, 2688] at the published sizes."""
        deep = features.low_res_deep

        def attend(stack: Stack, context: Array) -> Array:
            def step(block: CrossBlock, x: Array, _: None) -> tuple[Array, None]:
                return shard_batch(block(shard_batch(x), context)), None

            return stack.scan(step, deep, remat=remat)[0]

        scale = self.proj_cross_scale(attend(self.cross_scale_blocks, features.high_res_deep))
        layer = self.proj_cross_layer(attend(self.cross_layer_blocks, features.low_res_shallow))
        return jnp.concatenate([self.proj(deep) + scale, layer], axis=1)

    def resample(
        self, gathered: Float[Array, "b n e"], timestep: Float[Array, "b"], *, remat: Remat = "none"
    ) -> Float[Array, "b q c"]:
        """Compute the subject tokens, [b, 1024, 4096] at the published sizes.

        Args:
            gathered: result of `gather`.
            timestep: timestep in 0..1000, float32.
            remat: what the backward pass recomputes.
        """
        return self.resampler(gathered, timestep, remat=remat)[0]
