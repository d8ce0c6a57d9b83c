"""Models and files of other kinds, and parts that do not fit, are named when they are refused."""

from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from convert.commands import main
from ic_jax.weights import loading
from ic_jax.weights.tensors import WeightsError
from tests.conftest import TINY, edit_json

FIRST = {"txt_in.weight": (8, 8), "vector_in.in_layer.weight": (8, 8)}


@pytest.mark.parametrize(
    ("file", "values", "name"),
    [
        ("model_index.json", {"_class_name": "FluxFillPipeline"}, "FLUX.1 Fill"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3"),
        ("transformer/config.json", {"_class_name": "SD3Transformer2DModel"}, "Diffusion 3"),
        ("transformer/config.json", {"in_channels": 384, "out_channels": 64}, "FLUX.1 Fill"),
        ("transformer/config.json", {"in_channels": 128}, "FLUX.1 Depth or Canny"),
        ("transformer/config.json", {"_class_name": "UNet"}, "_class_name is 'UNet', expected"),
        ("transformer/config.json", {"patch_size": 2}, "patch_size 2, supported is 1"),
        ("transformer/config.json", {"axes_dims_rope": [8, 8, 8]}, r"do not add up"),
        ("vae/config.json", {"use_quant_conv": True}, "use_quant_conv True, supported is False"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act 'relu' is none of"),
        ("text_encoder_2/config.json", {"feed_forward_proj": "relu"}, "feed_forward_proj 'relu'"),
        ("text_encoder_2/config.json", {"model_type": "bert"}, "model_type is 'bert'"),
        ("scheduler/scheduler_config.json", {"use_beta_sigmas": True}, "use_beta_sigmas True"),
    ],
)
def test_another_kind_of_model_is_named(flux, run, file, values, name):
    edit_json(flux / file, **values)
    status, error = run("from-torch", "--flux", flux)
    assert status == 3
    assert name in error
    assert str(flux / file) in error


def test_parts_that_do_not_fit_each_other(flux, run, tmp_path):
    """Refused before a weight is read, in conversion and at load, with both parts and numbers."""
    adapter = ("--adapter", TINY / "instantcharacter_ip-adapter.bin")
    towers = ("--siglip", TINY / "siglip", "--dinov2", TINY / "dinov2")
    convert = ("from-torch", "--flux", flux, *adapter, *towers)
    assert run(*convert, out=tmp_path / "good" / "MODEL")[0] == 0
    model = tmp_path / "good" / "MODEL"

    def change(component, file, **values):
        """Return the lines with which conversion and loading refuse changed values."""
        lines = []
        configs = {flux / file: True, model / component / "config.json": False}
        for path, converting in configs.items():
            before = path.read_text()
            edit_json(path, **values)
            path.write_text(path.read_text().ljust(len(before)))  # a MODEL knows its files' sizes
            if converting:
                lines.append(run(*convert)[1])
            else:
                with pytest.raises(WeightsError) as error:
                    loading.load_model(model, verify=False)
                lines.append(str(error.value))
            path.write_text(before)
        return lines

    for component, file, values, line in (
        (
            "t5",
            "text_encoder_2/config.json",
            {"d_model": 88},
            "88 channels come from T5, and FLUX takes",
        ),
        (
            "clip",
            "text_encoder/config.json",
            {"hidden_size": 88},
            "88 channels come from CLIP, and FLUX",
        ),
        (
            "vae",
            "vae/config.json",
            {"latent_channels": 5},
            "20 channels come from the VAE, and FLUX",
        ),
        ("t5", "text_encoder_2/config.json", {"vocab_size": 9}, "and T5 knows 9 words; give the"),
        ("clip", "text_encoder/config.json", {"vocab_size": 9}, "and CLIP knows 9 words; give"),
    ):
        assert all(line in refused for refused in change(component, file, **values)), line
    path = model / "adapter/config.json"
    size = path.stat().st_size
    edit_json(path, siglip_layers=[0, 1, 99])
    path.write_text(path.read_text().ljust(size))
    with pytest.raises(WeightsError, match="reads layer 99 of SigLIP, which has "):
        loading.load_model(model, verify=False)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"joint_blocks.0.x": (1,)}, "is Stable Diffusion 3"),
        ({"redux_up.weight": (1,)}, "is FLUX.1 Redux"),
        ({"a.lora_A.weight": (1,)}, "is a LoRA; draw with it: `python -m infer --lora FILE`"),
        (FIRST | {"img_in.weight": (8, 384)}, "is FLUX.1 Fill"),
        (FIRST | {"img_in.weight": (8, 128)}, "is FLUX.1 Depth or Canny"),
        (
            FIRST | {"img_in.weight": (8, 64)},
            "damaged or cut transformer: has no 'double_blocks.0.",
        ),
        (
            {"encoder.conv_in.weight": (8, 3, 3, 3)},
            "is nothing that ic_jax knows, by its 1 tensors",
        ),
    ],
)
def test_another_single_file_is_named(tmp_path, run, tensors, message):
    path = tmp_path / "flux1-dev.safetensors"
    safetensors.torch.save_file({k: torch.zeros(s) for k, s in tensors.items()}, path)
    status, error = run("from-torch", "--flux", path)
    assert status == 3
    assert message in error


ZEROS = torch.zeros(2, 2)
BYTES = SimpleNamespace(
    nvfp4=torch.frombuffer(bytearray(b'{"format": "nvfp4"}'), dtype=torch.uint8)
)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"a.weight.quant_state.bitsandbytes__nf4": ZEROS}, "has 4-bit weights of bitsandbytes"),
        ({"a.weight.absmax": ZEROS, "a.weight.quant_map": ZEROS}, "4-bit weights of bitsandbytes"),
        ({"a.SCB": ZEROS}, "has 8-bit weights of bitsandbytes"),
        ({"a.qweight": ZEROS, "a.wscales": ZEROS}, "has SVDQuant weights"),
        ({"a.weight_scale_2": ZEROS}, "has NVFP4 weights"),
        ({"a.comfy_quant": BYTES.nvfp4}, "says nvfp4"),
        ({"double_stream_modulation_img.lin.weight": ZEROS}, "is FLUX.2"),
        ({"transformer_blocks.0.img_mod.1.weight": ZEROS}, "is Qwen-Image"),
        ({"distilled_guidance_layer.in_proj.weight": ZEROS}, "is Chroma"),
        ({"model.diffusion_model.input_blocks.0.0.weight": ZEROS}, "is a U-Net"),
        ({"lora_unet_x.lora_down.weight": ZEROS}, "is a LoRA"),
        ({"lora_unet_x.lokr_w1": ZEROS}, "is a LyCORIS"),
        ({"strange": ZEROS}, "is nothing that ic_jax knows, by its 1 tensors (strange)"),
    ],
)
def test_what_else_a_file_may_be(tmp_path, tensors, what, capsys):
    """inspect says it, and conversion refuses with the same words."""
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({n: t.clone() for n, t in tensors.items()}, path)
    assert main(["inspect", str(path)]) == 0
    line = capsys.readouterr().out.strip()
    assert what in line
    assert main(["from-torch", "--flux", str(path), "--out", str(tmp_path / "MODEL")]) == 3
    assert capsys.readouterr().err.strip() == f"error: {line}"
