"""SigLIP vision encoder (arXiv 2303.15343; transformers' SiglipVisionModel).

The pooling head is left out, because InstantCharacter does not use it.
"""

from functools import partial

from flax import nnx
from jaxtyping import Array, Float

from ic_jax.config import SiglipConfig
from ic_jax.models.attention import attention, merge_heads, split_heads
from ic_jax.models.hidden_states import run_blocks
from ic_jax.models.layers import Conv, Embedding, LayerNorm, Linear, Mlp, Stack, gelu_tanh


class SelfAttention(nnx.Module):
    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        d = config.hidden_size
        self.q_proj = Linear(d, d, axes=("width", None), rngs=rngs)
        self.k_proj = Linear(d, d, axes=("width", None), rngs=rngs)
        self.v_proj = Linear(d, d, axes=("width", None), rngs=rngs)
        self.out_proj = Linear(d, d, axes=(None, "width"), rngs=rngs)
        self.head_dim = d // config.num_attention_heads

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        q, k, v = (
            split_heads(y, self.head_dim) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        return self.out_proj(merge_heads(attention(q, k, v)))


class Block(nnx.Module):
    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        d, hidden = config.hidden_size, config.intermediate_size
        self.layer_norm1 = LayerNorm(d, eps=config.layer_norm_eps)
        self.self_attn = SelfAttention(config, rngs=rngs)
        self.layer_norm2 = LayerNorm(d, eps=config.layer_norm_eps)
        self.mlp = Mlp(d, hidden, activation=gelu_tanh, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nnx.Module):
    """Patches plus positions; pixels beyond the last full patch are dropped."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        d, patch = config.hidden_size, config.patch_size
        self.patch_embedding = Conv(
            3,
            d,
            patch,
            stride=patch,
            padding=((0, 0), (0, 0)),
            axes=(None, None, None, "width"),
            rngs=rngs,
        )
        positions = (config.image_size // patch) ** 2
        self.position_embedding = Embedding(positions, d, axes=(None, "width"), rngs=rngs)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        x = self.patch_embedding(pixels)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return x + self.position_embedding.weight[None].astype(x.dtype)


class VisionModel(nnx.Module):
    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        layers = Stack(partial(Block, config), config.num_hidden_layers, rngs=rngs)
        self.encoder = nnx.Dict({"layers": layers})
        self.post_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class SiglipVision(nnx.Module):
    """SigLIP vision encoder for pictures of one size."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.vision_model = VisionModel(config, rngs=rngs)
        self.config = config

    def __call__(
        self, pixels: Float[Array, "b h w 3"], layers: tuple[int, ...] = ()
    ) -> tuple[Float[Array, "b n d"], tuple[Float[Array, "b n d"], ...]]:
        """Encode pictures of `config.image_size` pixels a side.

        Args:
            pixels: normalised to mean and std 0.5 (-1..1), in the dtype of the computation.
            layers: numbers of the hidden states to return; 0 is the embeddings.

        Returns:
            The last hidden state after the final LayerNorm, and the hidden states `layers`, which
            are not normalised. One token per patch, row by row.
        """
        model = self.vision_model
        x, hidden_states = run_blocks(
            model.encoder["layers"], self.config.num_hidden_layers, model.embeddings(pixels), layers
        )
        return model.post_layernorm(x), hidden_states
