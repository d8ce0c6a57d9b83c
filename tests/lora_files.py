"""LoRA files of every layout, written as it is documented, and the changes that they are."""

import numpy as np
from safetensors.numpy import save_file

from ic_jax.config import ClipConfig, FluxConfig, T5Config
from ic_jax.weights.lora.targets import targets_of

FLUX = FluxConfig(
    num_layers=2,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    axes_dims_rope=(4, 6, 6),
    in_channels=8,
)
D, RANK, ALPHA = 32, 3, 6.0
BLOCK, SINGLE = "transformer_blocks.1.", "single_transformer_blocks.0."
TIME = "time_text_embed."
# Modules of BFL: their inputs, and diffusers' maps that their rows hold.
BFL = {
    "double_blocks.1.img_attn.qkv": (D, [f"{BLOCK}attn.to_{x}" for x in "qkv"]),
    "double_blocks.1.txt_attn.qkv": (D, [f"{BLOCK}attn.add_{x}_proj" for x in "qkv"]),
    "double_blocks.1.img_attn.proj": (D, [f"{BLOCK}attn.to_out.0"]),
    "double_blocks.1.txt_attn.proj": (D, [f"{BLOCK}attn.to_add_out"]),
    "double_blocks.1.img_mlp.0": (D, [f"{BLOCK}ff.net.0.proj"]),
    "double_blocks.1.txt_mlp.2": (4 * D, [f"{BLOCK}ff_context.net.2"]),
    "double_blocks.1.img_mod.lin": (D, [f"{BLOCK}norm1.linear"]),
    "double_blocks.1.txt_mod.lin": (D, [f"{BLOCK}norm1_context.linear"]),
    "single_blocks.0.linear1": (
        D,
        [*(f"{SINGLE}attn.to_{x}" for x in "qkv"), f"{SINGLE}proj_mlp"],
    ),
    "single_blocks.0.linear2": (5 * D, [f"{SINGLE}proj_out"]),
    "single_blocks.0.modulation.lin": (D, [f"{SINGLE}norm.linear"]),
    "img_in": (8, ["x_embedder"]),
    "txt_in": (24, ["context_embedder"]),
    "time_in.in_layer": (256, [f"{TIME}timestep_embedder.linear_1"]),
    "vector_in.out_layer": (D, [f"{TIME}text_embedder.linear_2"]),
    "guidance_in.out_layer": (D, [f"{TIME}guidance_embedder.linear_2"]),
    "final_layer.linear": (D, ["proj_out"]),
    "final_layer.adaLN_modulation.1": (D, ["norm_out.linear"]),
}
XLABS = {
    "double_blocks.1.processor.qkv_lora1": "double_blocks.1.img_attn.qkv",
    "double_blocks.1.processor.qkv_lora2": "double_blocks.1.txt_attn.qkv",
    "double_blocks.1.processor.proj_lora1": "double_blocks.1.img_attn.proj",
    "double_blocks.1.processor.proj_lora2": "double_blocks.1.txt_attn.proj",
    "single_blocks.0.processor.qkv_lora": "single_blocks.0.linear1",
    "single_blocks.0.processor.proj_lora": "single_blocks.0.linear2",
}
TEXT = ClipConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=20,
)
TEXT_2 = T5Config(vocab_size=64, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3)
TARGETS = targets_of({"transformer": FLUX, "clip": TEXT, "t5": TEXT_2})
SIZES = TARGETS["transformer"]
RNG = np.random.default_rng(0)


def pair(inputs, outputs):
    return tuple(RNG.standard_normal(s, np.float32) for s in ((RANK, inputs), (outputs, RANK)))


def outputs_of(names):
    return sum(SIZES[name][1] for name in names)


def bfl_file(key, modules=BFL):
    """Return tensors of BFL modules under `key(module, part)`, and the changes that they are."""
    tensors, changes = {}, {}
    for module, (inputs, names) in modules.items():
        a, b = pair(inputs, outputs_of(names))
        tensors |= {key(module, "a"): a, key(module, "b"): b}
        tensors[key(module, "alpha")] = np.array(ALPHA, np.float32)
        product, start = ALPHA / RANK * b @ a, 0
        if module.startswith("final_layer.adaLN"):  # BFL: shift, scale; diffusers: scale, shift
            product = np.concatenate([product[D:], product[:D]])
        for name in names:
            rows = SIZES[name][1]
            changes["transformer", name] = product[start : start + rows]
            start += rows
    return tensors, changes


def diffusers_file(key, alpha=True, names=SIZES):
    tensors, changes = {}, {}
    for name in names:
        a, b = pair(*SIZES[name])
        tensors |= {key(name, "a"): a, key(name, "b"): b}
        if alpha:
            tensors[key(name, "alpha")] = np.array([ALPHA], np.float16)
        changes["transformer", name] = (ALPHA / RANK if alpha else 1) * b @ a
    return tensors, changes


def named(template, a, b, underscored=False, alpha="alpha"):
    """Return a function from a module and a part to a key."""
    parts = {"a": a, "b": b, "alpha": alpha}

    def key(module, part):
        module = module.replace(".", "_") if underscored else module
        return f"{template.format(module)}.{parts[part]}"

    return key


KOHYA, PEFT = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
OLD = ("lora.down.weight", "lora.up.weight")
LINEAR = ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
ADAPTER = ("lora_A.default.weight", "lora_B.default.weight")


def xlabs_file():
    singles = {"single_blocks.0.linear1": (D, BFL["single_blocks.0.linear1"][1][:3])}
    used = {bfl: (BFL | singles)[bfl] for bfl in XLABS.values()}
    bfl_names = {bfl: xlabs for xlabs, bfl in XLABS.items()}
    parts = {"a": "down.weight", "b": "up.weight", "alpha": "alpha"}
    tensors, changes = bfl_file(lambda m, part: f"{bfl_names[m]}.{parts[part]}", used)
    matrices = {key: value for key, value in tensors.items() if not key.endswith("alpha")}
    return matrices, {key: value * RANK / ALPHA for key, value in changes.items()}


FILES = {
    "1: peft": lambda: diffusers_file(named("transformer.{}", *PEFT)),
    "1 with an adapter in keys: peft": lambda: diffusers_file(
        named("transformer.{}", *ADAPTER), alpha=False
    ),
    "1 and 2: diffusers' names, kohya's matrices": lambda: diffusers_file(
        named("transformer.{}", *KOHYA)
    ),
    "2: kohya": lambda: bfl_file(named("lora_unet_{}", *KOHYA, underscored=True)),
    "3: ComfyUI": lambda: bfl_file(named("diffusion_model.{}", *KOHYA)),
    "4: peft of BFL's names": lambda: bfl_file(named("diffusion_model.{}", *PEFT)),
    "4 of peft itself: peft of BFL's names": lambda: bfl_file(named("base_model.model.{}", *PEFT)),
    "4 without prefix: peft of BFL's names": lambda: bfl_file(named("{}", *PEFT)),
    "5: XLabs": xlabs_file,
    "7: OneTrainer": lambda: diffusers_file(named("lora_transformer_{}", *KOHYA, underscored=True)),
    "8: peft without prefix": lambda: diffusers_file(named("{}", *PEFT), alpha=False),
    "9: old diffusers": lambda: diffusers_file(named("transformer.{}", *OLD), alpha=False),
    "9, lora_linear_layer: old diffusers": lambda: diffusers_file(
        named("{}", *LINEAR), alpha=False
    ),
}


def write(tmp_path, tensors, **options):
    file = tmp_path / "lora.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, file, **options)
    return file


Q = "transformer.transformer_blocks.0.attn.to_q"
A, B = np.ones((RANK, D), np.float32), np.ones((D, RANK), np.float32)
GOOD = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}
