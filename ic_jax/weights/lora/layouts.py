"""Layouts of LoRA files for FLUX: their keys as patterns, and what becomes of each key.

A key is a prefix, the name of a module and the name of a matrix. A layout says which prefix, whose
names of modules and which names of matrices; the first one that a key fits is its layout. Kinds of
files that are no LoRA for FLUX are in REFUSED, keys that are passed over in IGNORED.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ic_jax.weights.bfl_names import FLUX


@dataclass(frozen=True)
class Names:
    """Names of a component's modules.

    Attributes:
        modules: name, "*" for the number of a block -> our linear maps that the module's rows are.
    """

    component: str
    modules: Mapping[str, tuple[str, ...]]


_BFL = {name: parts for name, parts in FLUX.items() if not name.endswith("_norm")}
_CLIP = [*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"]
_T5 = [
    *(f"layer.0.SelfAttention.{x}" for x in "qkvo"),
    *(f"layer.1.DenseReluDense.{x}" for x in ("wi_0", "wi_1", "wo")),
]
BFL = Names("transformer", _BFL)
DIFFUSERS = Names("transformer", {part: (part,) for parts in _BFL.values() for part in parts})
XLABS = Names(
    "transformer",
    {
        "double_blocks.*.processor.qkv_lora1": _BFL["double_blocks.*.img_attn.qkv"],
        "double_blocks.*.processor.qkv_lora2": _BFL["double_blocks.*.txt_attn.qkv"],
        "double_blocks.*.processor.proj_lora1": _BFL["double_blocks.*.img_attn.proj"],
        "double_blocks.*.processor.proj_lora2": _BFL["double_blocks.*.txt_attn.proj"],
        "single_blocks.*.processor.qkv_lora": _BFL["single_blocks.*.linear1"][:3],
        "single_blocks.*.processor.proj_lora": _BFL["single_blocks.*.linear2"],
    },
)
CLIP = Names(
    "clip",
    {
        f"{tower}encoder.layers.*.{name}": (f"text_model.encoder.layers.*.{name}",)
        for tower in ("text_model.", "")  # transformers 5 leaves the tower out
        for name in _CLIP
    },
)
T5 = Names("t5", {f"encoder.block.*.{name}": (f"encoder.block.*.{name}",) for name in _T5})

# Patterns of the names of matrices: down is A, up is B.
_ALPHA = r"\.(?P<alpha>alpha)"
_FIELD = r"\.(?P<field>weight|bias)"
# peft puts the name of an adapter between a matrix and its field.
PEFT = rf"(?:\.lora_(?P<matrix>[AB])(?:\.(?P<adapter>[^.]+?))??(?:{_FIELD})?|{_ALPHA})"
KOHYA = rf"(?:\.lora_(?P<matrix>down|up){_FIELD}|{_ALPHA})"
OLD = rf"(?:\.(?:lora|lora_linear_layer)\.(?P<matrix>down|up){_FIELD}|{_ALPHA})"
PLAIN = rf"(?:\.(?P<matrix>down|up){_FIELD}|{_ALPHA})"
ANY = (PEFT, KOHYA, OLD)


@dataclass(frozen=True)
class Layout:
    """Layout of keys.

    Attributes:
        name: as people know it.
        prefix: pattern before the name of a module.
        matrices: patterns after it.
        separator: between the parts of a module's name; kohya's names have underscores alone.
    """

    name: str
    prefix: str
    names: Names
    matrices: tuple[str, ...]
    separator: str = "."


TEXT_ENCODER = "text encoder"  # the names of one belong to several layouts
_COMFY = r"(?:(?:model\.)?diffusion_model\.)?"
LAYOUTS: tuple[Layout, ...] = (
    Layout("peft", r"transformer\.", DIFFUSERS, (PEFT,)),
    Layout("diffusers' names, kohya's matrices", r"(?:transformer\.)?", DIFFUSERS, (KOHYA,)),
    Layout("old diffusers", r"(?:transformer\.|unet\.)?", DIFFUSERS, (OLD,)),
    Layout("peft without prefix", rf"(?:base_model\.model\.|{_COMFY})", DIFFUSERS, (PEFT,)),
    Layout("kohya", "lora_unet_", BFL, (KOHYA,), "_"),
    Layout("OneTrainer", "lora_transformer_", DIFFUSERS, (KOHYA,), "_"),
    Layout("ComfyUI", _COMFY, BFL, (KOHYA,)),
    Layout("peft of BFL's names", rf"(?:transformer\.|base_model\.model\.|{_COMFY})", BFL, (PEFT,)),
    Layout("XLabs", _COMFY, XLABS, (PLAIN,)),
    Layout(TEXT_ENCODER, r"text_encoder\.", CLIP, ANY),
    Layout(TEXT_ENCODER, r"text_encoder_2\.", T5, ANY),
    Layout(TEXT_ENCODER, r"text_encoders\.clip_l\.transformer\.", CLIP, ANY),
    Layout(TEXT_ENCODER, r"text_encoders\.t5xxl\.transformer\.", T5, ANY),
    Layout(TEXT_ENCODER, "lora_te1_", CLIP, (KOHYA,), "_"),
    Layout(TEXT_ENCODER, "lora_te[23]_", T5, (KOHYA,), "_"),  # kohya's T5 is 3, OneTrainer's 2
)

_PLAIN = "get it as a plain LoRA (lora_A and lora_B, or lora_down and lora_up)"
_LYCORIS = f"this kind of LyCORIS is no plain pair of matrices; {_PLAIN}"
# Pattern of a key, the kind of file that has such keys, and why it is refused.
REFUSED: tuple[tuple[str, str, str], ...] = (
    (
        r".*\.processor\.[a-z]+_loras\.\d+\..*",
        "an EasyControl adapter",
        "it adds a picture as a condition and is no style LoRA; draw with EasyControl's own code",
    ),
    (r".*\.lokr_.*", "a LoKr", _LYCORIS),
    (r".*\.hada_.*", "a LoHa", _LYCORIS),
    (r".*\.lora_mid\..*", "a LoCon with a core tensor", _LYCORIS),
    (r".*\.b?oft_.*", "an OFT", f"it rotates weights; {_PLAIN}"),
    (r".*\.(dora_scale|lora_magnitude_vector.*)", "a DoRA", f"it also scales rows; {_PLAIN}"),
    (r".*\.diff(_b)?", "a file of differences of whole weights", _PLAIN),
    (
        r".*\.norm(\.(query|key)_norm\.scale|_(added_)?[qk]\.weight)",
        "a control LoRA of Black Forest Labs (depth or canny)",
        "it needs a base whose input takes the control picture too; get a LoRA without control",
    ),
    (
        r"(unet\.|lora_te_|lora_te2_text_model_|lora_unet_(input|middle|output|down|mid|up)_).*",
        "a LoRA for Stable Diffusion",
        "its base is another model; get one that was trained on FLUX.1-dev",
    ),
)
# Pattern of a key, and what is passed over with it.
IGNORED: tuple[tuple[str, str], ...] = (
    (r"bundle_emb\..*", "embeddings of new words, which no prompt here can say"),
)
