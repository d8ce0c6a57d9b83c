"""FLUX.1 transformer (black-forest-labs/flux; diffusers `FluxTransformer2DModel`).

Text and image tokens pass through double blocks (two streams, joint attention) and then
through single blocks (one stream, attention and MLP in parallel). Only `denoise` depends on the
noise; a sampler computes the text embedding, the rotary table and the modulation of all its steps
beforehand.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ic_jax.config import FluxConfig
from ic_jax.models.attention import Heads
from ic_jax.models.heads import attend, from_heads, from_heads_and_channels, to_heads, token_axis
from ic_jax.models.image_prompt import BlockPrompt, ImagePrompt
from ic_jax.models.layers import (
    EmbedMlp,
    Linear,
    LinearOfParts,
    Remat,
    RMSNorm,
    Stack,
    gelu_tanh,
    normalize,
    sinusoid,
)
from ic_jax.models.rope import Rope, in_stream_order, normalize_and_rotate
from ic_jax.models.streams import concat_streams, shard_tokens, split_streams
from ic_jax.models.target import in_memory
from ic_jax.sharding import constrain, shard_batch

LAYER_NORM_EPS = 1e-6


class Modulation(NamedTuple):
    """Shift, scale and gate vectors of every block at one timestep.

    The leading axis is that of the scan over blocks; `k` is the number of vectors per block.
    """

    img: Float[Array, "blocks b k d"]  # k = 6: three of attention, then three of the MLP
    txt: Float[Array, "blocks b k d"]
    single: Float[Array, "singles b 3 d"]
    out: Float[Array, "b 2 d"]  # scale, shift: the order of diffusers; BFL has shift, scale


class ModulationLinear(nnx.Module):
    """Linear map from a conditioning vector to `count` modulation vectors."""

    def __init__(self, features: int, count: int, *, rngs: nnx.Rngs):
        self.linear = Linear(features, count * features, axes=("embed", "mlp"), rngs=rngs)

    def __call__(self, vec: Float[Array, "b d"]) -> Float[Array, "b k d"]:
        return self.linear(jax.nn.silu(vec)).reshape(*vec.shape[:-1], -1, vec.shape[-1])


def modulate(
    x: Float[Array, "b n d"], shift: Float[Array, "b d"], scale: Float[Array, "b d"]
) -> Float[Array, "b n d"]:
    """Apply LayerNorm without parameters, then (1 + scale) x + shift; computed in float32."""
    shift, scale = shift[:, None].astype(jnp.float32), scale[:, None].astype(jnp.float32)
    return in_memory((normalize(x, LAYER_NORM_EPS) * (1 + scale) + shift).astype(x.dtype))


class FeedForward(nnx.Module):
    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        up = nnx.Dict({"proj": Linear(features, hidden, axes=("embed", "mlp"), rngs=rngs)})
        down = Linear(hidden, features, axes=("mlp", "embed"), rngs=rngs)
        self.net: Any = nnx.Dict({"0": up, "2": down})

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.net["2"](in_memory(gelu_tanh(self.net["0"]["proj"](x))))


class JointAttention(nnx.Module):
    """Projections of a block's attention; a double block has a second set for the text."""

    def __init__(self, config: FluxConfig, *, double: bool, rngs: nnx.Rngs):
        d, head_dim = config.hidden_size, config.attention_head_dim
        self.head_dim = head_dim

        heads = config.num_attention_heads

        def project() -> Linear:
            return Linear(d, d, axes=("embed", "heads"), heads=heads, rngs=rngs)

        def output() -> Linear:
            return Linear(d, d, axes=("heads", "embed"), heads=heads, rngs=rngs)

        self.to_q, self.to_k, self.to_v = project(), project(), project()
        self.norm_q = RMSNorm(head_dim, eps=LAYER_NORM_EPS)
        self.norm_k = RMSNorm(head_dim, eps=LAYER_NORM_EPS)
        if double:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = project(), project(), project()
            self.norm_added_q = RMSNorm(head_dim, eps=LAYER_NORM_EPS)
            self.norm_added_k = RMSNorm(head_dim, eps=LAYER_NORM_EPS)
            self.to_out = nnx.Dict({"0": output()})
            self.to_add_out = output()

    def qkv(self, x: Float[Array, "b n d"]) -> tuple[Heads, ...]:
        """Return queries (before their norm), keys and values of the image or joint stream."""
        return self._heads(x, self.to_q, self.to_k, self.to_v)

    def added_qkv(self, x: Float[Array, "b n d"]) -> tuple[Heads, ...]:
        """Return queries (before their norm), keys and values of a double block's text stream."""
        return self._heads(x, self.add_q_proj, self.add_k_proj, self.add_v_proj)

    def _heads(self, x: Array, *projections: Linear) -> tuple[Heads, ...]:
        return tuple(to_heads(project, x, self.head_dim) for project in projections)


class DoubleBlock(nnx.Module):
    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        d, hidden = config.hidden_size, config.mlp_ratio * config.hidden_size
        self.norm1 = ModulationLinear(d, 6, rngs=rngs)
        self.norm1_context = ModulationLinear(d, 6, rngs=rngs)
        self.attn = JointAttention(config, double=True, rngs=rngs)
        self.ff = FeedForward(d, hidden, rngs=rngs)
        self.ff_context = FeedForward(d, hidden, rngs=rngs)

    def __call__(
        self,
        img: Float[Array, "b n d"],
        txt: Float[Array, "b t d"],
        img_mod: Float[Array, "b 6 d"],
        txt_mod: Float[Array, "b 6 d"],
        rope: Rope,
        image_prompt: BlockPrompt | None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b t d"]]:
        attn, t, axis = self.attn, txt.shape[1], token_axis()
        q, k, v = attn.qkv(modulate(img, img_mod[:, 0], img_mod[:, 1]))
        txt_q, txt_k, txt_v = attn.added_qkv(modulate(txt, txt_mod[:, 0], txt_mod[:, 1]))

        out = attend(
            normalize_and_rotate([(txt_q, attn.norm_added_q), (q, attn.norm_q)], rope),
            normalize_and_rotate([(txt_k, attn.norm_added_k), (k, attn.norm_k)], rope),
            concat_streams(txt_v, v, axis),
            split="both",
        )
        txt_out, img_out = split_streams(out, t, axis)
        if image_prompt is not None:
            img_out = image_prompt(img_out, q, 0)

        img = img + img_mod[:, 2, None] * from_heads(attn.to_out["0"], img_out)
        img = img + img_mod[:, 5, None] * self.ff(modulate(img, img_mod[:, 3], img_mod[:, 4]))
        txt = txt + txt_mod[:, 2, None] * from_heads(attn.to_add_out, txt_out)
        txt_ff = self.ff_context(modulate(txt, txt_mod[:, 3], txt_mod[:, 4]))
        return img, txt + txt_mod[:, 5, None] * txt_ff


class SingleBlock(nnx.Module):
    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        d, hidden = config.hidden_size, config.mlp_ratio * config.hidden_size
        self.norm = ModulationLinear(d, 3, rngs=rngs)
        self.attn = JointAttention(config, double=False, rngs=rngs)
        self.proj_mlp = Linear(d, hidden, axes=("embed", "mlp"), rngs=rngs)
        proj_out = Linear(d + hidden, d, axes=("mlp", "embed"), rngs=rngs)
        self.proj_out: Linear | LinearOfParts = proj_out

    def __call__(
        self,
        x: Float[Array, "b n d"],
        mod: Float[Array, "b 3 d"],
        rope: Rope,
        text_tokens: int,
        image_prompt: BlockPrompt | None,
    ) -> Float[Array, "b n d"]:
        attn = self.attn
        y = modulate(x, mod[:, 0], mod[:, 1])
        # Before the attention, in whose time a TPU would move y out of its fast memory.
        y, mlp = in_memory((y, gelu_tanh(self.proj_mlp(y))))
        q, k, v = attn.qkv(y)
        out = attend(
            normalize_and_rotate([(q, attn.norm_q)], rope),
            normalize_and_rotate([(k, attn.norm_k)], rope),
            v,
            split="both",
        )
        if image_prompt is not None:
            out = image_prompt(out, q, text_tokens)
        return x + mod[:, 2, None] * from_heads_and_channels(self.proj_out, out, mlp)


class TimeTextEmbed(nnx.Module):
    """Timestep, guidance (FLUX.1-dev only) and pooled text to one conditioning vector."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        d, c = config.hidden_size, config.time_channels
        self.timestep_embedder = EmbedMlp(c, d, rngs=rngs)
        self.guidance_embedder = EmbedMlp(c, d, rngs=rngs) if config.guidance_embeds else None
        self.text_embedder = EmbedMlp(config.pooled_projection_dim, d, rngs=rngs)
        self.channels = c

    def __call__(
        self, t: Float[Array, "b"], guidance: Float[Array, "b"], pooled: Float[Array, "b p"]
    ) -> Float[Array, "b d"]:
        def embed(embedder: EmbedMlp, value: Array) -> Array:
            return embedder(sinusoid(1000.0 * value, self.channels).astype(pooled.dtype))

        vec = embed(self.timestep_embedder, t) + self.text_embedder(pooled)
        if self.guidance_embedder is not None:
            vec = vec + embed(self.guidance_embedder, guidance)
        return vec


class Flux(nnx.Module):
    """FLUX.1 transformer; computes in the dtype of its inputs, but t and guidance are float32."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        d = config.hidden_size
        self.config = config
        self.x_embedder = Linear(config.in_channels, d, axes=(None, "embed"), rngs=rngs)
        self.context_embedder = Linear(
            config.joint_attention_dim, d, axes=(None, "embed"), rngs=rngs
        )
        self.time_text_embed = TimeTextEmbed(config, rngs=rngs)
        self.transformer_blocks = Stack(
            lambda rngs: DoubleBlock(config, rngs=rngs), config.num_layers, rngs=rngs
        )
        self.single_transformer_blocks = Stack(
            lambda rngs: SingleBlock(config, rngs=rngs), config.num_single_layers, rngs=rngs
        )
        self.norm_out = ModulationLinear(d, 2, rngs=rngs)
        self.proj_out = Linear(d, config.in_channels, axes=("embed", None), rngs=rngs)

    def modulation(
        self, t: Float[Array, "b"], guidance: Float[Array, "b"], pooled: Float[Array, "b p"]
    ) -> Modulation:
        """Compute the modulation vectors of all blocks.

        Args:
            t: time in 0..1 (1 is pure noise), float32.
            guidance: guidance scale (3.5 is the default of FLUX.1-dev), float32; unused by a
                model without guidance embedding (FLUX.1-schnell).
            pooled: pooled text embedding of CLIP.
        """
        vec = self.time_text_embed(t, guidance, pooled)

        def of_blocks(stack: Stack, name: str) -> Array:
            # Block by block: one product would copy the transposed kernels of all blocks.
            vectors = stack.map(name, lambda linear: shard_batch(linear(vec)))
            return constrain(vectors, None, "batch", None, None)

        return Modulation(
            img=of_blocks(self.transformer_blocks, "norm1"),
            txt=of_blocks(self.transformer_blocks, "norm1_context"),
            single=of_blocks(self.single_transformer_blocks, "norm"),
            out=shard_batch(self.norm_out(vec)),
        )

    def embed_text(self, prompt_embeds: Float[Array, "b t c"]) -> Float[Array, "b t d"]:
        """Project the T5 embeddings to the width of the transformer; the same at every step."""
        return self.context_embedder(prompt_embeds)

    def denoise(
        self,
        latents: Float[Array, "b n c"],
        txt: Float[Array, "b t d"],
        modulation: Modulation,
        rope: Rope,
        image_prompt: ImagePrompt | None = None,
        *,
        remat: Remat = "none",
    ) -> Float[Array, "b n c"]:
        """Predict the velocity of packed `latents` from the results of the other methods.

        `remat` chooses what the backward pass recomputes (`ic_jax.models.layers.Remat`).
        """
        img, txt, t = shard_tokens(self.x_embedder(latents)), shard_tokens(txt), txt.shape[1]
        rope = in_stream_order(rope, t)
        double_ip, single_ip = (None, None) if image_prompt is None else image_prompt.by_block()

        def block_prompt(of_block: tuple | None) -> BlockPrompt | None:
            return image_prompt.block(*of_block) if image_prompt and of_block else None

        def double(block: DoubleBlock, carry: tuple, x: tuple) -> tuple:
            (img, txt), (img_mod, txt_mod, ip) = map(shard_tokens, carry), x
            img, txt = block(img, txt, img_mod, txt_mod, rope, block_prompt(ip))
            return (shard_tokens(img), shard_tokens(txt)), None

        def single(block: SingleBlock, joint: Array, x: tuple) -> tuple:
            mod, ip = x
            joint = shard_tokens(joint)
            return shard_tokens(block(joint, mod, rope, t, block_prompt(ip))), None

        (img, txt), _ = self.transformer_blocks.scan(
            double, (img, txt), (modulation.img, modulation.txt, double_ip), remat=remat
        )
        joint, _ = self.single_transformer_blocks.scan(
            single,
            concat_streams(txt, img),
            (modulation.single, single_ip),
            remat=remat,
        )
        scale, shift = modulation.out[:, 0], modulation.out[:, 1]
        return self.proj_out(modulate(split_streams(joint, t)[1], shift, scale))

    def __call__(
        self,
        latents: Float[Array, "b n c"],
        prompt_embeds: Float[Array, "b t e"],
        pooled: Float[Array, "b p"],
        t: Float[Array, "b"],
        guidance: Float[Array, "b"],
        rope: Rope,
        image_prompt: ImagePrompt | None = None,
        *,
        remat: Remat = "none",
    ) -> Float[Array, "b n c"]:
        """Predict the velocity noise - image at time t in one call, for training."""
        modulation = self.modulation(t, guidance, pooled)
        txt = self.embed_text(prompt_embeds)
        return self.denoise(latents, txt, modulation, rope, image_prompt, remat=remat)
