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
from ic_jax.models.attention import Heads
from ic_jax.models.heads import attend, to_heads, token_axis
from ic_jax.models.layers import Linear, Stack, per_channel
from ic_jax.models.streams import add_to_image, split_streams, to_stream_order
from ic_jax.models.target import platform


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

    def __call__(self, q: Heads, tokens: Float[Array, "u m c"], text_tokens: int = 0) -> Heads:
        """Attend from b rows of queries, b / u consecutive rows per subject, to u subjects.

        Args:
            q: queries; the first `text_tokens` of a stream attend to nothing and are left out.
            tokens: subject tokens.
            text_tokens: see `q`.
        """
        k, v = self.keys_values(tokens, q.shape[-1])
        each = q.shape[0] // tokens.shape[0]
        k, v = (jnp.repeat(x, each, axis=0) for x in (self.norm_ip_k(k), v))
        # Normalised before it is split: FLUX's own norm takes the same mean of squares.
        q = self.norm_ip_q(q)
        if text_tokens:
            q = split_streams(q, text_tokens, token_axis())[1]
        return attend(q, k, v, split="queries")

    def keys_values(self, tokens: Float[Array, "u m c"], head_dim: int) -> tuple[Heads, ...]:
        """Return keys (before their norm) and values of the subject tokens."""
        return to_heads(self.to_k_ip, tokens, head_dim), to_heads(self.to_v_ip, tokens, head_dim)


class ImagePromptStacks(nnx.Module):
    """Image-prompt attention of every block.

    Published as ip_adapter.N, where N counts the double blocks and then the single blocks.
    """

    def __init__(self, config: AdapterConfig, flux: FluxConfig, *, rngs: nnx.Rngs):
        def make(rngs: nnx.Rngs) -> ImagePromptAttention:
            return ImagePromptAttention(config, flux, rngs=rngs)

        self.transformer_blocks = Stack(make, flux.num_layers, rngs=rngs)
        self.single_transformer_blocks = Stack(make, flux.num_single_layers, rngs=rngs)


BlockPrompt = Callable[[Heads, Heads, int], Heads]


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
        """Return a function that adds the subject to the image tokens of a block's attention.

        It takes the output of the attention, its queries (before norm and RoPE), and the number of
        text tokens in both.
        """

        def prompt(out: Heads, q: Heads, text_tokens: int) -> Heads:
            scale = self.scale[:, None, None, None].astype(q.dtype)
            if not text_tokens:
                return out + scale * attention(q, self.tokens)
            if platform() != "tpu":
                change = scale * attention(q, self.tokens, text_tokens)
                return add_to_image(out, change, token_axis())
            # A tenth more queries cost less than four passes that take streams apart and join them.
            is_image = jnp.arange(q.shape[token_axis()]) >= text_tokens
            is_image = to_stream_order(is_image[:, None].astype(q.dtype), text_tokens)
            is_image = jnp.expand_dims(is_image, (0, 3 - token_axis()))
            return out + scale * is_image * attention(q, self.tokens)

        return prompt
