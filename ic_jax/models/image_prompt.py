"""Image-prompt attention: cross-attention from every block of FLUX to the subject tokens.

Published as `ip_adapter`. FLUX takes it as one optional argument, an `ImagePrompt`: each block
passes its image queries and adds the result to the output of its own attention.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ic_jax.config import AdapterConfig, FluxConfig
from ic_jax.models.attention import Heads
from ic_jax.models.heads import attend, over_heads, to_heads, token_axis
from ic_jax.models.layers import Linear, Stack, per_channel
from ic_jax.models.streams import add_to_image, concat_streams, split_streams, to_stream_order
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

    def __call__(
        self,
        q: Heads,
        tokens: Float[Array, "u m c"],
        text_tokens: int = 0,
        token_scale: Float[Array, "b m"] | None = None,
    ) -> Heads:
        """Attend from b rows of queries, b / u consecutive rows per subject, to u subjects.

        Args:
            q: queries; the first `text_tokens` of a stream attend to nothing and are left out.
            tokens: subject tokens.
            text_tokens: see `q`.
            token_scale: factor of each subject token's value.
        """
        k, v = self.keys_values(tokens, q.shape[-1])
        each = q.shape[0] // tokens.shape[0]
        k, v = (jnp.repeat(x, each, axis=0) for x in (self.norm_ip_k(k), v))
        if token_scale is not None:
            v = over_heads(token_scale.astype(v.dtype)) * v
        return attend(self._queries(q, text_tokens), k, v, split="queries")

    def of_each(
        self, q: Heads, tokens: Float[Array, "u k m c"], text_tokens: int = 0
    ) -> Float[Array, "b k _ _ hd"]:
        """Attend to each of k subjects by itself; arguments as of a call."""
        u, count = tokens.shape[:2]
        each = q.shape[0] // u

        def of_rows(x: Array) -> Array:  # u k -> b k
            subjects = x.reshape(u, count, *x.shape[1:])
            return jnp.repeat(subjects, each, axis=0).reshape(-1, *x.shape[1:])

        k, v = self.keys_values(tokens.reshape(-1, *tokens.shape[2:]), q.shape[-1])
        queries = jnp.repeat(self._queries(q, text_tokens), count, axis=0)
        out = attend(queries, of_rows(self.norm_ip_k(k)), of_rows(v), split="queries")
        return out.reshape(-1, count, *out.shape[1:])

    def _queries(self, q: Heads, text_tokens: int) -> Heads:
        # Normalised before it is split: FLUX's own norm takes the same mean of squares.
        q = self.norm_ip_q(q)
        return split_streams(q, text_tokens, token_axis())[1] if text_tokens else q

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


class BlockFactors(NamedTuple):
    """Factor of the subject's scale in each block."""

    double: Float[Array, "l"]
    single: Float[Array, "s"]


class ImagePrompt(NamedTuple):
    """Image prompt of FLUX at one timestep.

    Attributes:
        attention: one image-prompt attention per block.
        tokens: subject tokens of the resampler at this timestep; u subjects for b pictures,
            where u divides b and the pictures of one subject are consecutive. With an axis k, every
            picture has k subjects.
        scale: subject scale per picture, and per subject where there are k; 0 drops the subject.
        regions: weight of each subject at each image token. Each has an attention of its own, and
            these are added; without regions one attention sees the tokens of all k subjects.
        block_factors: factor of `scale` in each block; 1 by default.
    """

    attention: ImagePromptStacks
    tokens: Float[Array, "u *k m c"]
    scale: Float[Array, "b *k"]
    regions: Float[Array, "b k n"] | None = None
    block_factors: BlockFactors | None = None

    def by_block(self) -> tuple[Any, Any]:
        """Return the arguments of `block` for double and for single blocks, to be scanned."""
        stacks = self.attention.transformer_blocks, self.attention.single_transformer_blocks
        factors = self.block_factors or (None, None)
        return (stacks[0], factors[0]), (stacks[1], factors[1])

    def block(
        self, attention: ImagePromptAttention, factor: Float[Array, ""] | None = None
    ) -> BlockPrompt:
        """Return a function that adds the subject to the image tokens of a block's attention.

        It takes the output of the attention, its queries (before norm and RoPE), and the number of
        text tokens in both.
        """
        scale = self.scale if factor is None else factor * self.scale

        def prompt(out: Heads, q: Heads, text_tokens: int) -> Heads:
            if not text_tokens:
                return out + self._change(attention, scale, q)
            if platform() != "tpu":
                change = self._change(attention, scale, q, text_tokens)
                return add_to_image(out, change, token_axis())
            # A tenth more queries cost less than four passes that take streams apart and join them.
            is_image = jnp.arange(q.shape[token_axis()]) >= text_tokens
            is_image = to_stream_order(is_image[:, None].astype(q.dtype), text_tokens)
            is_image = jnp.expand_dims(is_image, (0, 3 - token_axis()))
            return out + self._change(attention, scale, q, where=is_image)

        return prompt

    def _change(
        self,
        attention: ImagePromptAttention,
        scale: Float[Array, "b *k"],
        q: Heads,
        text_tokens: int = 0,
        where: Float[Array, "1 _ _ 1"] | None = None,
    ) -> Heads:
        """Return what the subject adds to the attention's output, times `where`."""
        if self.regions is not None:
            weights = scale[:, :, None] * self.regions
            if where is not None:  # a stream: with the text's tokens, in its order
                text = jnp.zeros((*scale.shape, q.shape[token_axis()] - weights.shape[2]))
                weights = concat_streams(text, weights, axis=2)
            each = attention.of_each(q, self.tokens, text_tokens)
            return (over_heads(weights.astype(q.dtype)) * each).sum(1)
        if scale.ndim == 2:
            u, k, m, c = self.tokens.shape
            tokens, token_scale = self.tokens.reshape(u, k * m, c), jnp.repeat(scale, m, axis=1)
            change = attention(q, tokens, text_tokens, token_scale)
            return change if where is None else where * change
        scale = scale[:, None, None, None].astype(q.dtype)
        scale = scale if where is None else scale * where
        return scale * attention(q, self.tokens, text_tokens)
