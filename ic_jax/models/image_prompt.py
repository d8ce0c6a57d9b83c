"""Image-prompt attention: cross-attention from every block of FLUX to the subject tokens.

Published as `ip_adapter`. FLUX takes it as one optional argument, an `ImagePrompt`: each block
passes its image queries and adds the result to the output of its own attention.
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
    """x / (rms(x) + eps) * scale: eps is outside the root, unlike in the norm of FLUX."""

    eps = 1e-6

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features), axes=(None,))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = x.astype(jnp.float32)
        mean_square = jnp.square(y).mean(-1, keepdims=True)
        # The derivative of the root is infinite at 0: a row of zeros must not give NaN gradients.
        zero = mean_square == 0
        rms = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, mean_square)))
        scale = per_channel(self.scale[...].astype(jnp.float32), x)
        return (y / (rms + self.eps) * scale).astype(x.dtype)


class ImagePromptAttention(nnx.Module):
    """Cross-attention of one block's image queries to the subject tokens.

    Only the values start at zero, so training starts at plain FLUX. Zero keys would be
    normalised as zero vectors, where the gradient of the norm explodes.
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
        """Attend from b rows of queries, b / u consecutive rows per subject, to u subjects."""
        head_dim = q.shape[-1]
        k = self.norm_ip_k(split_heads(self.to_k_ip(tokens), head_dim))
        v = split_heads(self.to_v_ip(tokens), head_dim)
        q = self.norm_ip_q(q)
        if current() is not None:  # rows stay on their device: each gets the keys of its subject
            each = q.shape[0] // tokens.shape[0]
            k, v = (jnp.repeat(x, each, axis=0) for x in (k, v))
            return attention(q, k, v, split="queries")
        # There is no mask, so the pictures of one subject can be one long row of queries.
        grouped = q.reshape(tokens.shape[0], -1, *q.shape[2:])
        return attention(grouped, k, v).reshape(q.shape)


class ImagePromptStacks(nnx.Module):
    """Image-prompt attention of every block.

    Published as ip_adapter.N, where N counts the double blocks and then the single blocks.
    """

    def __init__(self, config: AdapterConfig, flux: FluxConfig, *, rngs: nnx.Rngs):
        def make(rngs: nnx.Rngs) -> ImagePromptAttention:
            return ImagePromptAttention(config, flux, rngs=rngs)

        self.transformer_blocks = Stack(make, flux.num_layers, rngs=rngs)
        self.single_transformer_blocks = Stack(make, flux.num_single_layers, rngs=rngs)


BlockPrompt = Callable[[Float[Array, "b n h d"]], Float[Array, "b n h d"]]


class ImagePrompt(NamedTuple):
    """Image prompt of FLUX at one timestep.

    Attributes:
        attention: one image-prompt attention per block.
        tokens: subject tokens of the resampler at this timestep; u subjects for b pictures,
            where u divides b and the pictures of one subject are consecutive.
        scale: subject scale per picture; 0 drops the subject.
    """

    attention: ImagePromptStacks
    tokens: Float[Array, "u m c"]
    scale: Float[Array, "b"]

    def block(self, attention: ImagePromptAttention) -> BlockPrompt:
        """Return a function from image queries (before norm and RoPE) to the scaled output."""

        def prompt(q: Float[Array, "b n h d"]) -> Float[Array, "b n h d"]:
            return self.scale[:, None, None, None].astype(q.dtype) * attention(q, self.tokens)

        return prompt
