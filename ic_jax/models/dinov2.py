"""DINOv2 vision encoder (arXiv 2304.07193; transformers' Dinov2Model), without mask token."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ic_jax.config import Dinov2Config
from ic_jax.models.attention import attention, merge_heads, split_heads
from ic_jax.models.bicubic import resize
from ic_jax.models.hidden_states import run_blocks
from ic_jax.models.layers import Conv, LayerNorm, Linear, Mlp, Stack, gelu_erf, per_channel


class SelfAttention(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        d = config.hidden_size

        def project() -> Linear:
            return Linear(d, d, axes=("width", None), rngs=rngs)

        self.attention = nnx.Dict({"query": project(), "key": project(), "value": project()})
        self.output = nnx.Dict({"dense": Linear(d, d, axes=(None, "width"), rngs=rngs)})
        self.head_dim = d // config.num_attention_heads

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        q, k, v = (
            split_heads(self.attention[name](x), self.head_dim)
            for name in ("query", "key", "value")
        )
        return self.output["dense"](merge_heads(attention(q, k, v)))


class LayerScale(nnx.Module):
    """x * lambda1, one learned factor per channel (arXiv 2103.17239)."""

    def __init__(self, features: int):
        self.lambda1 = nnx.Param(jnp.ones(features), axes=(None,))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return x * per_channel(self.lambda1[...].astype(x.dtype), x)


class SwiGlu(nnx.Module):
    """SwiGLU with 2/3 of the MLP width, rounded up to a multiple of 8; the gate comes first."""

    def __init__(self, features: int, mlp_width: int, *, rngs: nnx.Rngs):
        hidden = (int(mlp_width * 2 / 3) + 7) // 8 * 8
        self.weights_in = Linear(features, 2 * hidden, axes=("width", None), rngs=rngs)
        self.weights_out = Linear(hidden, features, axes=(None, "width"), rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        gate, value = jnp.split(self.weights_in(x), 2, axis=-1)
        return self.weights_out(jax.nn.silu(gate) * value)


class Block(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        d, mlp_width = config.hidden_size, config.hidden_size * config.mlp_ratio
        self.norm1 = LayerNorm(d, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, rngs=rngs)
        self.layer_scale1 = LayerScale(d)
        self.norm2 = LayerNorm(d, eps=config.layer_norm_eps)
        self.mlp = (
            SwiGlu(d, mlp_width, rngs=rngs)
            if config.use_swiglu_ffn
            else Mlp(d, mlp_width, activation=gelu_erf, rngs=rngs)
        )
        self.layer_scale2 = LayerScale(d)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Embeddings(nnx.Module):
    """CLS token and patches plus positions; pixels beyond the last full patch are dropped."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        d, patch = config.hidden_size, config.patch_size
        positions = 1 + (config.image_size // patch) ** 2
        self.cls_token = nnx.Param(jnp.zeros((1, 1, d)), axes=(None, None, "width"))
        self.position_embeddings = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (1, positions, d)), axes=(None, None, "width")
        )
        projection = Conv(
            3,
            d,
            patch,
            stride=patch,
            padding=((0, 0), (0, 0)),
            axes=(None, None, None, "width"),
            rngs=rngs,
        )
        self.patch_embeddings = nnx.Dict({"projection": projection})

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        x = self.patch_embeddings["projection"](pixels)
        b, height, width, d = x.shape
        positions = self._positions(height, width).astype(x.dtype)
        cls = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (b, 1, d))
        return jnp.concatenate([cls, x.reshape(b, -1, d)], axis=1) + positions[None]

    def _positions(self, height: int, width: int) -> Float[Array, "n d"]:
        """Return the positions of CLS and of a grid, resampled where the trained grid differs."""
        table = self.position_embeddings[0]
        side = math.isqrt(table.shape[0] - 1)
        if (height, width) == (side, side):
            return table
        grid = resize(table[1:].reshape(side, side, -1), height, width)
        return jnp.concatenate(
            [table[:1].astype(jnp.float32), grid.reshape(height * width, -1)], axis=0
        )


class Dinov2(nnx.Module):
    """DINOv2 vision encoder for pictures of any size."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        layers = Stack(partial(Block, config), config.num_hidden_layers, rngs=rngs)
        self.encoder = nnx.Dict({"layer": layers})
        self.layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.config = config

    def __call__(
        self, pixels: Float[Array, "b h w 3"], layers: tuple[int, ...] = ()
    ) -> tuple[Float[Array, "b n d"], tuple[Float[Array, "b n d"], ...]]:
        """Encode pictures of any size.

        Args:
            pixels: normalised by the mean and std of ImageNet, in the dtype of the computation.
            layers: numbers of the hidden states to return; 0 is the embeddings.

        Returns:
            The last hidden state after the final LayerNorm, and the hidden states `layers`, which
            are not normalised. The CLS token first, then one token per patch.
        """
        x, hidden_states = run_blocks(
            self.encoder["layer"],
            self.config.num_hidden_layers,
            self.embeddings(pixels),
            layers,
        )
        return self.layernorm(x), hidden_states
