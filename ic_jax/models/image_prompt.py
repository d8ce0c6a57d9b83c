"""Image-prompt attention: how the subject's tokens enter every block of FLUX.

Published as `ip_adapter`. FLUX knows of it only as one optional argument, an `ImagePrompt`:
each block hands over its image queries and adds what comes back to its attention's output.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ic_jax.config import AdapterConfig, FluxConfig
from ic_jax.models.attention import attention, split_heads
from ic_jax.models.layers import Linear, Stack, per_channel
from ic_jax.sharding import current


class RootMeanSquareNorm(nnx.Module):
    """x / (rms(x) + eps) * scale: eps stands outside the root, unlike in FLUX's own norm."""

    eps = 1e-6

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features), axes=(None,))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = x.astype(jnp.float32)
        mean_square = jnp.square(y).mean(-1, keepdims=True)
        # The root's slope is infinite at zero: a row of zeros must not make gradients NaN.
        zero = mean_square == 0
        rms = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, mean_square)))
        scale = per_channel(self.scale[...].astype(jnp.float32), x)
        return (y / (rms + self.eps) * scale).astype(x.dtype)


class ImagePromptAttention(nnx.Module):
    """Cross-attention of one block's image queries to the subject tokens.

    Only the values start at zero, so training starts at plain FLUX: zero keys would put a
    zero vector under the norm, whose gradient explodes.
    """

    def __init__(self, config: AdapterConfig, flux: FluxConfig, *, rngs: nnx.Rngs):
        sizes = (config.output_dim, flux.hidden_size)
        axes, heads = ("embed", "heads"), flux.num_attention_heads
        self.to_k_ip = Linear(*sizes, axes=axes, heads=heads, rngs=rngs)
        self.to_v_ip = Linear(*sizes, axes=axes, heads=heads, zero=True, rngs=rngs)
        self.norm_ip_q = RootMeanSquareNorm(flux.attention_head_dim)
        self.norm_ip_k = RootMeanSquareNorm(flux.attention_head_dim)

    def __call__(
        self, q: Float[Array, "b n h d"], tokens: Float[Array, "u m c"]
    ) -> Float[Array, "b n h d"]:
        """Rows of q belong to the u subjects in order, b / u to each."""
        head_dim = q.shape[-1]
        k = self.norm_ip_k(split_heads(self.to_k_ip(tokens), head_dim))
        v = split_heads(self.to_v_ip(tokens), head_dim)
        q = self.norm_ip_q(q)
        if current() is not None:  # rows stay where they are: each gets its subject's keys
            each = q.shape[0] // tokens.shape[0]
            k, v = (jnp.repeat(x, each, axis=0) for x in (k, v))
            return attention(q, k, v, split="queries")
        # Without a mask, pictures of one subject are one long row of queries.
        grouped = q.reshape(tokens.shape[0], -1, *q.shape[2:])
        return attention(grouped, k, v).reshape(q.shape)


class ImagePromptStacks(nnx.Module):
    """The attention of every block; published as ip_adapter.N, N = 0 the first double block
    and on through the single ones."""

    def __init__(self, config: AdapterConfig, flux: FluxConfig, *, rngs: nnx.Rngs):
        def make(rngs: nnx.Rngs) -> ImagePromptAttention:
            return ImagePromptAttention(config, flux, rngs=rngs)

        self.transformer_blocks = Stack(make, flux.num_layers, rngs=rngs)
        self.single_transformer_blocks = Stack(make, flux.num_single_layers, rngs=rngs)


BlockPrompt = Callable[[Float[Array, "b n h d"]], Float[Array, "b n h d"]]


class ImagePrompt(NamedTuple):
    """What FLUX needs to draw a subject at one timestep.

    attention: one image-prompt attention per block.
    tokens: the resampler's subject tokens at this timestep; u subjects for b pictures, where
        u divides b and the pictures of one subject are neighbours.
    scale: subject scale per picture; 0 drops the subject.
    """

    attention: ImagePromptStacks
    tokens: Float[Array, "u m c"]
    scale: Float[Array, "b"]

    def block(self, attention: ImagePromptAttention) -> BlockPrompt:
        """One block's share: image queries in (before norm and RoPE), scaled output out."""

        def prompt(q: Float[Array, "b n h d"]) -> Float[Array, "b n h d"]:
            return self.scale[:, None, None, None].astype(q.dtype) * attention(q, self.tokens)

        return prompt
