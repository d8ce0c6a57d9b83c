"""Components that a file of weights holds, told by all its tensors' names and by their shapes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from convert.configs import refuse_other
from convert.published import OTHER_CHANNELS, OTHERWISE
from ic_jax.from_dict import first_few
from ic_jax.weights.tensors import OtherWeightsError, Tensor


@dataclass(frozen=True)
class Layout:
    """Names that a component's tensors have.

    marks: names that occur together in this layout only; all may follow one prefix.
    groups: starts of all its names, where other entries may lie beside it.
    """

    component: str
    name: str
    marks: tuple[str, ...]
    groups: tuple[str, ...] = ("",)


LAYOUTS = (
    Layout(
        "transformer",
        "BFL",
        ("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight"),
    ),
    Layout(
        "transformer",
        "diffusers",
        (
            "x_embedder.weight",
            "context_embedder.weight",
            "time_text_embed.text_embedder.linear_1.weight",
            "proj_out.weight",
        ),
    ),
    Layout("vae", "BFL", ("decoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight")),
    Layout(
        "vae",
        "diffusers",
        ("decoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"),
    ),
    Layout(
        "t5",
        "transformers",
        (
            "encoder.block.0.layer.0.SelfAttention.q.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        ),
    ),
    Layout("t5", "llama.cpp", ("token_embd.weight", "enc.blk.0.attn_rel_b.weight")),
    Layout(
        "siglip",
        "transformers",
        ("embeddings.patch_embedding.bias", "encoder.layers.0.self_attn.q_proj.weight"),
    ),
    Layout(
        "clip",
        "transformers",
        ("embeddings.token_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight"),
    ),
    Layout(
        "dinov2",
        "transformers",
        ("embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight"),
    ),
    Layout(
        "adapter",
        "InstantCharacter",
        ("ip_adapter.0.to_k_ip.weight",),
        groups=("ip_adapter.", "image_proj."),
    ),
)
# Names in files that are none of these -> what the file is. Searched after the components.
OTHERS: dict[str, str] = {
    r"\.lora_([AB]|down|up)\.|\.lora\.(down|up)\.|_lora\d?\.(down|up)\.|_loras\.\d": "a LoRA",
    r"\.(lokr|hada|oft)_\w+|\.dora_scale$|\.lora_magnitude_vector": "a LyCORIS, DoRA or OFT file",
    r"(^|\.)double_stream_modulation_img\.": "FLUX.2",
    r"(^|\.)distilled_guidance_layer\.": "Chroma",
    r"(^|\.)joint_blocks\.\d|(^|\.)pos_embed\.proj\.weight$": "Stable Diffusion 3",
    r"(^|\.)transformer_blocks\.0\.img_mod\.1\.": "Qwen-Image",
    r"(^|\.)double_blocks\.0\.img_attn_qkv\.": "HunyuanVideo",
    r"(^|\.)(redux_up|redux_down)\.": "FLUX.1 Redux",
    r"(^|\.)controlnet_(x_embedder|blocks)\b": "a ControlNet of FLUX",
    r"\.processor\.ip_adapter_|(^|\.)ip_adapter_proj_model\.": "XLabs' IP-Adapter of FLUX",
    r"(^|\.)input_blocks\.0\.0\.|\.time_emb_proj\.": "a U-Net of Stable Diffusion or SDXL",
    r"(^|\.)quant_conv\.weight$": "an autoencoder of Stable Diffusion or SDXL",
    r"(^|\.)blocks\.0\.attn\.qkv\.weight$": "a vision transformer under its authors' own names",
    r"(^|\.)pre_layrnorm\.weight$": "CLIP's vision tower",
}
REMEDIES = {
    "a LoRA": "draw with it: `python -m infer --lora FILE`",
    "a vision transformer under its authors' own names": "give facebook/dinov2-giant's file, as "
    "transformers names its tensors",
}

# llama.cpp's names of T5's tensors -> those of transformers; "*" is the block's number.
LLAMA: dict[str, str] = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
    **{
        f"enc.blk.*.{theirs}": f"encoder.block.*.layer.{ours}"
        for theirs, ours in {
            "attn_q": "0.SelfAttention.q",
            "attn_k": "0.SelfAttention.k",
            "attn_v": "0.SelfAttention.v",
            "attn_o": "0.SelfAttention.o",
            "attn_rel_b": "0.SelfAttention.relative_attention_bias",
            "attn_norm": "0.layer_norm",
            "ffn_gate": "1.DenseReluDense.wi_0",
            "ffn_up": "1.DenseReluDense.wi_1",
            "ffn_down": "1.DenseReluDense.wo",
            "ffn_norm": "1.layer_norm",
        }.items()
    },
}


@dataclass(frozen=True)
class Part:
    """A component in a file, its tensors without the prefix that they have there."""

    layout: Layout
    prefix: str
    tensors: dict[str, Tensor]


def recognise(path: Path, tensors: Mapping[str, Tensor]) -> tuple[list[Part], list[str]]:
    """Return the components in a file, and the names that belong to none.

    Raises:
        OtherWeightsError: the file is another model, which is named, or nothing that is known.
    """
    layouts = _layouts(tensors)
    parts = [Part(layout, prefix, {}) for prefix, layout in layouts.items()]
    rest = []
    starts = {p.prefix + group: p for p in parts for group in p.layout.groups}
    longest_first = sorted(starts, key=len, reverse=True)
    for name, tensor in tensors.items():
        start = next((s for s in longest_first if name.startswith(s)), None)
        if start is not None:
            part = starts[start]
            part.tensors[name.removeprefix(part.prefix)] = tensor
        else:
            rest.append(name)
    if not parts:
        raise OtherWeightsError(f"{path}: is {_other(tensors) or _unknown(tensors)}")
    for part in parts:
        _refuse_other_channels(path, part)
    return [_renamed(part) for part in parts], rest


def _layouts(names: Iterable[str]) -> dict[str, Layout]:
    """Return the layout after each prefix; a prefix ends in a dot, or is empty."""
    names = set(names)
    layouts: dict[str, Layout] = {}
    for layout in LAYOUTS:
        first = layout.marks[0]
        for name in names:
            prefix = name.removesuffix(first)
            if not name.endswith(first) or (prefix and not prefix.endswith(".")):
                continue
            if all(prefix + mark in names for mark in layout.marks):
                layouts.setdefault(prefix, layout)
    # SigLIP's text tower looks like CLIP.
    for prefix in [p for p, layout in layouts.items() if layout.component == "siglip"]:
        layouts.pop(prefix.removesuffix("vision_model.") + "text_model.", None)
    return layouts


def _refuse_other_channels(path: Path, part: Part) -> None:
    if part.layout.component != "transformer":
        return
    first = part.tensors[part.layout.marks[0]]
    if len(first.shape) == 2:
        refuse_other(path, first.shape[1], OTHER_CHANNELS)


def _other(names: Iterable[str]) -> str | None:
    for pattern, what in OTHERS.items():
        if any(re.search(pattern, name) for name in names):
            return f"{what}; {REMEDIES.get(what, OTHERWISE)}"
    return None


def _unknown(names: Iterable[str]) -> str:
    names = sorted(names)
    return (
        f"nothing that ic_jax knows, by its {len(names)} tensors "
        f"({first_few(names, 5) or 'none'}); give a file of FLUX.1, its autoencoder, T5, CLIP, "
        "SigLIP, DINOv2 or InstantCharacter's adapter"
    )


def _renamed(part: Part) -> Part:
    """Return a part with transformers' names, where it has llama.cpp's."""
    if part.layout.name != "llama.cpp":
        return part
    tensors = {}
    for name, tensor in part.tensors.items():
        module, _, last = name.rpartition(".")
        number = m[1] if (m := re.match(r"enc\.blk\.(\d+)\.", name)) else ""
        starred = re.sub(r"^enc\.blk\.\d+\.", "enc.blk.*.", module)
        new = LLAMA.get(starred, starred).replace("*", number)
        tensors[f"{new}.{last}"] = tensor
    return replace(part, tensors=tensors)
