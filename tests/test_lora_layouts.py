"""LoRA files of every layout: what each key changes, and files that are refused.

Files are written as their layouts are documented; diffusers' converters check two of them.
"""

import json

import ml_dtypes
import numpy as np
import pytest
from diffusers.loaders import lora_conversion_utils
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch_file

from convert.commands import main
from ic_jax.config import ClipConfig, T5Config
from ic_jax.weights.loading import abstract, parameters
from ic_jax.weights.lora.layouts import CLIP, DIFFUSERS, T5
from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.lora.targets import targets_of
from ic_jax.weights.tensors import WeightsError
from tests.test_train_lora import FLUX

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
CLIP_LAYER, T5_LAYER = (
    "text_model.encoder.layers.1.mlp.fc1",
    "encoder.block.1.layer.0.SelfAttention.q",
)
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


def products(lora):
    """Return scale * B A of every change, float32."""
    return {
        key: np.float32(c.scale) * c.b.astype(np.float32) @ c.a.astype(np.float32)
        for key, c in lora.changes.items()
    }


def expect_changes(lora, expected):
    ours = products(lora)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-5, err_msg=str(key))


@pytest.mark.parametrize("name", FILES)
def test_every_layout_gives_each_map_its_change(tmp_path, name):
    tensors, expected = FILES[name]()
    lora = read_lora(write(tmp_path, tensors), targets=TARGETS)
    assert lora.layout in name or name.partition(" ")[2] in (
        "kohya's matrices",
        *name.split(" ", 1),
    )
    assert not lora.passed_over
    expect_changes(lora, expected)


@pytest.mark.parametrize(
    ("component", "layer", "key"),
    [
        ("clip", CLIP_LAYER, "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_A.weight"),
        ("clip", CLIP_LAYER, "text_encoder.encoder.layers.1.mlp.fc1.lora_A.default.weight"),
        ("clip", CLIP_LAYER, "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora.down.weight"),
        ("clip", CLIP_LAYER, "lora_te1_text_model_encoder_layers_1_mlp_fc1.lora_down.weight"),
        (
            "clip",
            CLIP_LAYER,
            "text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc1.lora_down.weight",
        ),
        ("t5", T5_LAYER, f"text_encoder_2.{T5_LAYER}.lora_A.weight"),
        ("t5", T5_LAYER, "lora_te3_encoder_block_1_layer_0_SelfAttention_q.lora_down.weight"),
        ("t5", T5_LAYER, "lora_te2_encoder_block_1_layer_0_SelfAttention_q.lora_down.weight"),
        ("t5", T5_LAYER, f"text_encoders.t5xxl.transformer.{T5_LAYER}.lora_A.weight"),
    ],
)
def test_text_encoders(tmp_path, component, layer, key):
    a, b = pair(*TARGETS[component][layer])
    up = key.replace("lora_A", "lora_B").replace("down", "up")
    lora = read_lora(write(tmp_path, {key: a, up: b}), targets=TARGETS)
    expect_changes(lora, {(component, layer): b @ a})


def test_what_a_model_lacks_is_passed_over_and_said(tmp_path):
    a, b = pair(24, 24)
    tensors, expected = diffusers_file(named("transformer.{}", *PEFT))
    key = f"text_encoder_2.{T5_LAYER}.lora_A.weight"
    tensors |= {key: a, key.replace("_A", "_B"): b, "bundle_emb.x.t5": np.ones((1, 24), np.float32)}
    with pytest.warns(UserWarning, match="passed over 1 (embeddings|changes of t5)"):
        lora = read_lora(write(tmp_path, tensors), targets={"transformer": SIZES})
    expect_changes(lora, expected)
    assert lora.passed_over == {
        "embeddings of new words, which no prompt here can say": 1,
        "changes of t5, which this model lacks": 1,
    }


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (lambda: FILES["2: kohya"]()[0], "is a LoRA in the layout of kohya\n"),
        (lambda: GOOD | {"x.y": A}, "is a LoRA in the layout of peft; 1 of its 3 keys are unknown"),
        (lambda: GOOD | {f"{Q}.dora_scale": B[:, :1]}, "is a DoRA: it also scales rows"),
        (lambda: {"lora_unet_x.lokr_w1": A}, "is a LyCORIS, DoRA or OFT file"),
    ],
)
def test_inspect_names_the_layout(tmp_path, capsys, file, said):
    assert main(["inspect", str(write(tmp_path, file()))]) == 0
    assert said in capsys.readouterr().out


def test_the_table_has_every_linear_map_of_the_models():
    for names, config in ((DIFFUSERS, FLUX), (CLIP, TEXT), (T5, TEXT_2)):
        paths = parameters(abstract(names.component, config))
        maps = {k.removesuffix(".kernel") for k in paths if k.endswith(".kernel")}
        assert {name for parts in names.modules.values() for name in parts} == maps


def test_biases_of_b_are_read_and_swapped_as_b_is(tmp_path):
    tensors, _ = bfl_file(named("diffusion_model.{}", *PEFT))
    qkv, last = "double_blocks.1.img_attn.qkv", "final_layer.adaLN_modulation.1"
    biases = {m: RNG.standard_normal(n, np.float32) for m, n in ((qkv, 3 * D), (last, 2 * D))}
    tensors |= {f"diffusion_model.{m}.lora_B.bias": x for m, x in biases.items()}
    changes = read_lora(write(tmp_path, tensors), targets=TARGETS).changes
    np.testing.assert_array_equal(
        changes["transformer", f"{BLOCK}attn.to_k"].bias, biases[qkv][D : 2 * D]
    )
    swapped = changes["transformer", "norm_out.linear"].bias
    np.testing.assert_array_equal(swapped, np.roll(biases[last], D))
    assert changes["transformer", f"{BLOCK}attn.to_out.0"].bias is None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_dtypes(tmp_path, dtype):
    from ic_jax.weights.safetensors_io import Spec, write_file

    tensors, _ = diffusers_file(named("transformer.{}", *PEFT), names=["x_embedder"])
    tensors = {k: v.astype(dtype) for k, v in tensors.items()}
    specs = {k: Spec(v.dtype, v.shape) for k, v in tensors.items()}
    write_file(tmp_path / "x.safetensors", specs, lambda name: [tensors[name]])
    a, b = (tensors[f"transformer.x_embedder.{x}"].astype(np.float32) for x in PEFT)
    lora = read_lora(tmp_path / "x.safetensors", targets=TARGETS)
    expect_changes(lora, {("transformer", "x_embedder"): ALPHA / RANK * b @ a})


def test_the_published_converters_agree(tmp_path):
    """diffusers converts files of FLUX.1's own sizes; embedders it drops without a word."""
    sizes = {"qkv": (3072, 9216), "linear1": (3072, 21504), "linear2": (15360, 3072)}
    adaln = "lora_unet_final_layer_adaLN_modulation_1"
    kohya = {
        f"lora_unet_{m}": sizes[m.rpartition("_")[2]]
        for m in (
            "double_blocks_3_txt_attn_qkv",
            "single_blocks_7_linear1",
            "single_blocks_7_linear2",
        )
    } | {adaln: (3072, 6144)}
    xlabs = {
        "double_blocks.3.processor.qkv_lora2": sizes["qkv"],
        "single_blocks.7.processor.qkv_lora": sizes["qkv"],
        "single_blocks.7.processor.proj_lora": sizes["linear2"],
    }
    for modules, parts, convert in (
        (kohya, KOHYA, lora_conversion_utils._convert_kohya_flux_lora_to_diffusers),
        (
            xlabs,
            ("down.weight", "up.weight"),
            lora_conversion_utils._convert_xlabs_flux_lora_to_diffusers,
        ),
    ):
        tensors = {}
        for module, size in modules.items():
            a, b = pair(*size)
            tensors |= {f"{module}.{parts[0]}": a, f"{module}.{parts[1]}": b}
            if parts == KOHYA and module != adaln:  # whose alpha diffusers ignores
                tensors[f"{module}.alpha"] = np.array(ALPHA, np.float32)
        file = write(tmp_path, tensors)
        theirs = {k: v.numpy() for k, v in convert(load_torch_file(file)).items()}
        lora = read_lora(file)
        for (_, module), change in lora.changes.items():
            prefix = "" if f"{module}.lora_A.weight" in theirs else "transformer."
            a, b = (theirs.pop(f"{prefix}{module}.{x}") for x in PEFT)
            # The scale may be in either matrix; their product would be of the size of a kernel.
            factor = change.scale * np.abs(change.a).max() / np.abs(a).max()
            np.testing.assert_allclose(change.a * change.scale, a * factor, rtol=1e-5)
            np.testing.assert_allclose(change.b * factor, b, rtol=1e-5)
        assert not theirs


Q = "transformer.transformer_blocks.0.attn.to_q"
A, B = np.ones((RANK, D), np.float32), np.ones((D, RANK), np.float32)
GOOD = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}
CONTROL = {"double_blocks.0.img_attn.norm.query_norm.scale": np.ones(16, np.float32)}
EASY = "transformer_blocks.0.attn.processor.q_loras.0.down.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (CONTROL, r"is a control LoRA of Black Forest Labs \(depth or canny\)"),
        ({EASY: A}, "is an EasyControl adapter .* no style LoRA"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": A}, "is a LoKr .* plain LoRA"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a": A}, "is a LoHa .* plain LoRA"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.oft_blocks": A}, "is an OFT .* plain LoRA"),
        (GOOD | {f"{Q}.dora_scale": B[:, :1]}, "is a DoRA .* plain LoRA"),
        (GOOD | {f"{Q}.lora_magnitude_vector": B[:, 0]}, "is a DoRA .* plain LoRA"),
        ({"diffusion_model.img_in.diff": A}, "is a file of differences of whole weights"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.alpha": A}, "for Stable Diffusion"),
        ({"double_blocks.0.img_attn.qkv.weight": A}, "is no LoRA for FLUX: 1 of 1 keys"),
        ({}, "is no LoRA for FLUX"),
        (
            GOOD | {"transformer.x.lora_A.weight": A},
            "1 of 3 keys are unknown, such as transformer.x",
        ),
        (GOOD | {f"{Q}.lora_A.bias": A}, "unknown, such as .*lora_A.bias"),
        ({f"{Q}.lora_A.weight": A}, "to_q: B of it are missing"),
        ({f"{Q}.alpha": np.ones(1, np.float32)}, "to_q: A and B of it are missing"),
        (GOOD | {f"{Q}.lora_A.weight": A[:2]}, r"A \[2, 32\] and B \[32, 3\] do not share a rank"),
        (GOOD | {f"{Q}.lora_A.weight": A[None]}, "do not share a rank"),
        (GOOD | {f"{Q}.lora_A.weight": A.astype(np.int8)}, "A is int8, not floating point"),
        (GOOD | {f"{Q}.lora_A.weight": A[:, 1:]}, "map 31 -> 32; this model's is 32 -> 32"),
        (GOOD | {f"{Q}.lora_B.weight": np.nan * B}, "to_q: holds numbers that are not finite"),
        (GOOD | {f"{Q}.lora_A.weight": np.inf * A}, "to_q: holds numbers that are not finite"),
        (GOOD | {f"{Q}.lora_B.bias": A[0, 1:]}, "does not fit B"),
        (GOOD | {f"{Q}.alpha": np.float32([0])}, "alpha is 0; it must be above 0"),
        (GOOD | {f"{Q}.alpha": np.float32([-4])}, "alpha is -4; it must be above 0"),
        (GOOD | {f"{Q}.alpha": np.float32([np.nan])}, "alpha is nan; it must be above 0"),
        (GOOD | {f"{Q}.alpha": np.float32([1, 2])}, r"alpha has shape \[2\]"),
        (
            GOOD | {f"{Q}.lora_A.x.weight": A, f"{Q}.lora_B.y.weight": B},
            "holds 2 adapters, x, y; save each",
        ),
        (GOOD | {f"{Q}.lora_A.default.weight": A}, "are the same matrix"),
        (
            GOOD
            | {
                f"diffusion_model.double_blocks.0.img_attn.qkv.lora_{x}.weight": m
                for x, m in (("A", A), ("B", np.ones((3 * D, RANK), np.float32)))
            },
            "two pairs of matrices change transformer_blocks.0.attn.to_q",
        ),
        (
            {f"double_blocks.0.img_attn.qkv.lora_{x}.weight": m for x, m in (("A", A), ("B", B))},
            "B has 32 rows for 3 maps of 32 inputs",
        ),
        ({k.replace("s.0.", "s.9."): v for k, v in GOOD.items()}, "has no transformer_blocks.9"),
        (
            {"img_in.lora_A.weight": np.ones((RANK, 16), np.float32), "img_in.lora_B.weight": B},
            "x_embedder is for a map 16 -> 32; .* input takes another picture too",
        ),
    ],
)
def test_files_that_cannot_be_applied_say_why(tmp_path, tensors, message):
    with pytest.raises(WeightsError, match=message) as told:
        read_lora(write(tmp_path, tensors), targets=TARGETS)
    assert "\n" not in str(told.value)


def test_peft_keeps_alpha_beside_its_file(tmp_path):
    tensors, changes = diffusers_file(named("base_model.model.{}", *PEFT), alpha=False)
    file = write(tmp_path, tensors)
    settings = {"r": RANK, "lora_alpha": 2 * RANK, "alpha_pattern": {"x_embedder": RANK}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    lora = read_lora(file, targets=TARGETS)
    factors = {name: 1 if name == "x_embedder" else 2 for _, name in changes}
    expect_changes(lora, {k: factors[k[1]] * v for k, v in changes.items()})
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_rslora": True}))
    lora = read_lora(file, targets=TARGETS)
    expect_changes(lora, {k: RANK**0.5 * factors[k[1]] * v for k, v in changes.items()})
