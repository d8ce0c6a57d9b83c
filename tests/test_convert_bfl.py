"""Files under BFL's names: diffusers takes them for the same, and their shapes tell the sizes."""

from dataclasses import replace

import numpy as np
import safetensors.torch
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)

from convert import bfl
from convert.configs import to_published
from convert.names import published_shapes, slots
from ic_jax.config import CONFIGS, FluxConfig, VaeConfig
from ic_jax.weights import loading
from ic_jax.weights.model_folder import ModelFolder
from ic_jax.weights.tensors import Tensor
from tests.conftest import convert

# Heads as published, one of them: what a BFL file's shapes tell.
SMALL_DEV = FluxConfig(2, 2, 1, 128, 8, 6, (16, 56, 56), in_channels=4)


def joined(kind, shapes):
    """Random diffusers tensors of these shapes, and the BFL file's that hold the same."""
    rng = np.random.default_rng(0)
    theirs = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    tensors = {k: Tensor(x.dtype, x.shape, lambda x=x: x) for k, x in theirs.items()}
    fused = bfl.layout(kind, shapes)
    file = {name: torch.from_numpy(entry.join(tensors).array()) for name, entry in fused.items()}
    assert all(file[name].shape == entry.shape for name, entry in fused.items())
    return theirs, file


def assert_same_values(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(actual[name]), value, err_msg=name)


def test_bfl_flux_files_are_what_diffusers_takes_them_for():
    shapes = published_shapes(slots("transformer", SMALL_DEV))
    for name in [n for n in shapes if n.startswith("single_")]:  # diffusers cuts them at 3072
        widths = {"to_q": 3072, "to_k": 3072, "to_v": 3072, "proj_mlp": 12288}
        if width := next((w for part, w in widths.items() if f".{part}." in name), None):
            shapes[name] = (width, *shapes[name][1:])
    theirs, file = joined("transformer", shapes)
    assert file["single_blocks.1.linear1.bias"].shape == (21504,)
    assert_same_values(convert_flux_transformer_checkpoint_to_diffusers(file), theirs)


def test_bfl_vae_files_are_what_diffusers_takes_them_for():
    config = VaeConfig((8, 16, 16), latent_channels=4, norm_num_groups=4)
    shapes = published_shapes(slots("vae", config))
    theirs, file = joined("vae", shapes)
    assert_same_values(convert_ldm_vae_checkpoint(file, to_published("vae", config)), theirs)
    assert len(published_shapes(slots("vae", CONFIGS["flux-vae"]))) == 244


def test_sizes_of_a_bfl_file_are_read_off_its_shapes(tmp_path):
    changes = ({}, {"guidance_embeds": False}, {"num_layers": 0}, {"num_single_layers": 0})
    for i, config in enumerate(replace(SMALL_DEV, **change) for change in changes):
        theirs, file = joined("transformer", published_shapes(slots("transformer", config)))
        path = tmp_path / f"flux1-{i}.safetensors"
        safetensors.torch.save_file(file, path)
        out = tmp_path / f"MODEL-{i}"
        convert("from-torch", "--flux", path, "--out", out)
        folder = ModelFolder.open(out)
        assert loading.read_config(folder, "transformer") == config
        schedule = loading.read_config(folder, "scheduler")
        assert schedule.use_dynamic_shifting == config.guidance_embeds
        convert("to-torch", out, "--out", tmp_path / f"back-{i}")
        back = tmp_path / f"back-{i}" / "flux" / "transformer"
        assert_same_values(
            safetensors.torch.load_file(back / "diffusion_pytorch_model.safetensors"), theirs
        )
