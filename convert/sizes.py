"""Configs of components whose file comes without one, from the shapes of their tensors.

What no shape tells has the published value; `config_of` says which.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ic_jax.config import (
    FLUX_DEV,
    ClipConfig,
    ConfigError,
    Dinov2Config,
    FluxConfig,
    SiglipConfig,
    T5Config,
    VaeConfig,
)
from ic_jax.weights.tensors import Tensor

Tensors = Mapping[str, Tensor]
CLIP_HEAD, SIGLIP_HEAD, DINOV2_HEAD = 64, 72, 64  # widths of a head of the published models
SIGLIP_SIDE = 384  # pixels, no multiple of the 14 of its patches


# Names of tensors, and starts of the names of blocks, that tell FLUX's sizes.
FLUX_BFL = {
    "image": "img_in.weight",
    "text": "txt_in.weight",
    "pooled": "vector_in.in_layer.weight",
    "guidance": "guidance_in.in_layer.weight",
    "double": "double_blocks",
    "single": "single_blocks",
    "double norm": "double_blocks.0.img_attn.norm.query_norm.scale",
    "single norm": "single_blocks.0.norm.query_norm.scale",
}
FLUX_DIFFUSERS = {
    "image": "x_embedder.weight",
    "text": "context_embedder.weight",
    "pooled": "time_text_embed.text_embedder.linear_1.weight",
    "guidance": "time_text_embed.guidance_embedder.linear_1.weight",
    "double": "transformer_blocks",
    "single": "single_transformer_blocks",
    "double norm": "transformer_blocks.0.attn.norm_q.weight",
    "single norm": "single_transformer_blocks.0.attn.norm_q.weight",
}


def config_of(component: str, layout: str, tensors: Tensors) -> tuple[Any, str]:
    """Return the config of a component, and what in it has the published value.

    Args:
        layout: "BFL", "diffusers" or "transformers".

    Raises:
        KeyError: a tensor is missing.
        ValueError: shapes that no config describes.
    """
    read, assumed = READERS[component, layout]
    return read(tensors), assumed


def _blocks(tensors: Tensors, start: str) -> int:
    pattern = re.compile(re.escape(start) + r"\.(\d+)\.")
    return len({m[1] for name in tensors if (m := pattern.match(name))})


def _flux(tensors: Tensors, names: Mapping[str, str]) -> FluxConfig:
    hidden, in_channels = tensors[names["image"]].shape
    single = names["single norm"]  # a model may have no double blocks
    (head,) = tensors[single if single in tensors else names["double norm"]].shape
    if head != FLUX_DEV.attention_head_dim:
        raise ConfigError(f"heads of {head}, published are {FLUX_DEV.attention_head_dim}")
    return FluxConfig(
        num_layers=_blocks(tensors, names["double"]),
        num_single_layers=_blocks(tensors, names["single"]),
        num_attention_heads=hidden // head,
        attention_head_dim=head,
        joint_attention_dim=tensors[names["text"]].shape[1],
        pooled_projection_dim=tensors[names["pooled"]].shape[1],
        axes_dims_rope=FLUX_DEV.axes_dims_rope,
        in_channels=in_channels,
        guidance_embeds=names["guidance"] in tensors,
    )


def _vae(tensors: Tensors, levels: str, block: str) -> VaeConfig:
    number = _blocks(tensors, levels)
    first = [f"{levels}.{i}.{block}.0.conv1.weight" for i in range(number)]
    return VaeConfig(
        block_out_channels=tuple(tensors[name].shape[0] for name in first),
        latent_channels=tensors["decoder.conv_in.weight"].shape[1],
        layers_per_block=_blocks(tensors, f"{levels}.0.{block}"),
        in_channels=tensors["encoder.conv_in.weight"].shape[1],
        out_channels=tensors["decoder.conv_out.weight"].shape[0],
    )


def _t5(tensors: Tensors) -> T5Config:
    first = "encoder.block.0.layer."
    table = tensors.get("shared.weight") or tensors["encoder.embed_tokens.weight"]
    buckets, heads = tensors[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
    return T5Config(
        vocab_size=table.shape[0],
        d_model=table.shape[1],
        d_kv=tensors[f"{first}0.SelfAttention.q.weight"].shape[0] // heads,
        d_ff=tensors[f"{first}1.DenseReluDense.wi_0.weight"].shape[0],
        num_layers=_blocks(tensors, "encoder.block"),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )


def _clip(tensors: Tensors) -> ClipConfig:
    words, hidden = tensors["embeddings.token_embedding.weight"].shape
    return ClipConfig(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_blocks(tensors, "encoder.layers"),
        num_attention_heads=_heads(hidden, CLIP_HEAD),
        max_position_embeddings=tensors["embeddings.position_embedding.weight"].shape[0],
    )


def _siglip(tensors: Tensors) -> SiglipConfig:
    hidden, _, patch, _ = tensors["embeddings.patch_embedding.weight"].shape
    side = _square(tensors["embeddings.position_embedding.weight"].shape[0])
    return SiglipConfig(
        hidden_size=hidden,
        intermediate_size=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_blocks(tensors, "encoder.layers"),
        num_attention_heads=_heads(hidden, SIGLIP_HEAD),
        image_size=SIGLIP_SIDE if side == SIGLIP_SIDE // patch else side * patch,
        patch_size=patch,
    )


def _dinov2(tensors: Tensors) -> Dinov2Config:
    hidden, _, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    # One position is the class token's.
    side = _square(tensors["embeddings.position_embeddings"].shape[1] - 1)
    return Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=_blocks(tensors, "encoder.layer"),
        num_attention_heads=_heads(hidden, DINOV2_HEAD),
        image_size=side * patch,
        patch_size=patch,
        use_swiglu_ffn="encoder.layer.0.mlp.weights_in.weight" in tensors,
    )


def _heads(hidden: int, head: int) -> int:
    if hidden % head:
        raise ConfigError(f"a width of {hidden} is no multiple of the published heads' {head}")
    return hidden // head


def _square(positions: int) -> int:
    side = math.isqrt(positions)
    if side * side != positions:
        raise ConfigError(f"{positions} positions make no square")
    return side


READERS: dict[tuple[str, str], tuple[Callable[[Tensors], Any], str]] = {
    ("transformer", "BFL"): (partial(_flux, names=FLUX_BFL), "rotary axes"),
    ("transformer", "diffusers"): (partial(_flux, names=FLUX_DIFFUSERS), "rotary axes"),
    ("vae", "BFL"): (
        lambda tensors: _vae(tensors, "encoder.down", "block"),
        "scaling and shift factor, norm groups",
    ),
    ("vae", "diffusers"): (
        lambda tensors: _vae(tensors, "encoder.down_blocks", "resnets"),
        "scaling and shift factor, norm groups",
    ),
    ("t5", "transformers"): (_t5, "largest distance of positions"),
    ("clip", "transformers"): (_clip, f"heads of {CLIP_HEAD}, quick_gelu"),
    ("siglip", "transformers"): (_siglip, f"heads of {SIGLIP_HEAD}"),
    ("dinov2", "transformers"): (_dinov2, f"heads of {DINOV2_HEAD}"),
}
READERS["t5", "llama.cpp"] = READERS["t5", "transformers"]
