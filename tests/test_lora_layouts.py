"""LoRA files of every layout: what each key changes, two of them as diffusers converts them."""

import json

import ml_dtypes
import numpy as np
import pytest
from diffusers.loaders import lora_conversion_utils
from safetensors.torch import load_file as load_torch_file

from convert.commands import main
from ic_jax.weights.loading import abstract, parameters
from ic_jax.weights.lora.layouts import CLIP, DIFFUSERS, T5
from ic_jax.weights.lora.reading import read_lora
from tests.lora_files import (
    ALPHA,
    BLOCK,
    FILES,
    FLUX,
    GOOD,
    KOHYA,
    PEFT,
    RANK,
    RNG,
    SIZES,
    TARGETS,
    TEXT,
    TEXT_2,
    A,
    B,
    D,
    Q,
    bfl_file,
    diffusers_file,
    named,
    pair,
    write,
)

CLIP_LAYER, T5_LAYER = (
    "text_model.encoder.layers.1.mlp.fc1",
    "encoder.block.1.layer.0.SelfAttention.q",
)


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
