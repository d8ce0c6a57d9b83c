"""Sampler and training step, compiled for GPUs and TPUs that are not there.

The models are small, but their heads and numbers of tokens are such that the kernels are those of
the full size: cuDNN's attention forward and backward, with odd numbers of tokens too, and splash.
"""

import argparse
import importlib.util
from dataclasses import replace

import jax.numpy as jnp
import pytest

from ic_jax import auto_mesh
from ic_jax.planning.topologies import topology_devices
from infer import plan_command as drawing
from tests import toy
from train import plan_command as training
from train.recipe import recipe_of

FLUX = replace(toy.FLUX, num_attention_heads=4, attention_head_dim=128, axes_dims_rope=(16, 56, 56))
VISION = {"hidden_size": 64, "num_attention_heads": 1, "image_size": 40}  # 25 patches
CONFIGS = toy.CONFIGS | {
    "transformer": FLUX,
    "siglip": replace(toy.CONFIGS["siglip"], **VISION),
    "dinov2": replace(toy.CONFIGS["dinov2"], **VISION),
    "adapter": replace(
        toy.CONFIGS["adapter"],
        inner_dim=128,
        cross_attention_dim=128,
        embedding_dim=128,
        num_attention_heads=2,
        attention_head_dim=64,
        dim=64,
        heads=1,
        dim_head=64,
        num_queries=1024,
        output_dim=64,
    ),
}
SIDE = 192  # pixels, with the toy VAE 2304 tokens: half of them are enough for splash
TEXT = 32  # tokens

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


def needs(module, name, *values):
    """Return parameters of a test that are skipped where the compiler is not installed."""
    missing = importlib.util.find_spec(module) is None
    reason = f"{module} is not installed"
    return pytest.param(*values, id=name, marks=pytest.mark.skipif(missing, reason=reason))


ON_GPUS = [
    needs("jax_cuda13_plugin", "one H100", "h100:1", "data=1"),
    needs("jax_cuda13_plugin", "eight H100", "h100:8", "data=2,tensor=2,context=2"),
]
ON_TPUS = [
    needs("libtpu", "one v6e", "v6e:1x1", "data=1"),
    needs("libtpu", "eight v6e", "v6e:2x4", "data=2,tensor=2,context=2"),
]


@pytest.fixture(scope="module")
def shapes():
    return auto_mesh.shapes(CONFIGS, jnp.bfloat16)


def drawn(shapes, topology, mesh):
    """Return the report of two pictures in two steps."""
    parser = argparse.ArgumentParser()
    drawing.add_arguments(parser)
    size = ("--height", str(SIDE), "--width", str(SIDE), "--text-length", str(TEXT))
    args = parser.parse_args(["--mesh", mesh, *size, "--steps", "2", "--batch", "2"])
    (report,) = drawing.reports(args, shapes, topology_devices(topology))
    assert report["fits"]
    return report


def trained(shapes, topology, mesh):
    """Return the report of a step of two samples."""
    values = dict.fromkeys(("model", "data", "out"), "none") | {"mesh": mesh, "text_length": TEXT}
    recipe = recipe_of(values | {"stage1": {"steps": 1, "batch": 2, "resolution": SIDE}})
    (report,) = training.step_reports(recipe, shapes, topology_devices(topology))
    assert report["fits"]
    return report


@pytest.mark.parametrize(("topology", "mesh"), ON_GPUS)
def test_drawing_on_gpus(shapes, topology, mesh):
    kernels = drawn(shapes, topology, mesh)["kernels"]
    # Both blocks attend to all tokens and to the subject in each step, both stacks of the projector
    # twice per picture, and the resampler once for all steps.
    assert kernels[FORWARD] == 2 * 2 * 2 + 2 * 2 + 1


@pytest.mark.parametrize(("topology", "mesh"), ON_GPUS)
@pytest.mark.usefixtures("optax_promotes")
def test_training_on_gpus(shapes, topology, mesh):
    kernels = trained(shapes, topology, mesh)["kernels"]
    # Of the first block's attention to all tokens there is no gradient: nothing trained is in it.
    assert kernels[BACKWARD] == 3 + 2 * 2 + 1
    encoders = 2 * 2 * 2  # both layers of SigLIP and DINOv2, at two resolutions
    assert kernels[FORWARD] >= 4 + 2 * 2 + 1 + encoders


@pytest.mark.parametrize(("topology", "mesh"), ON_TPUS)
def test_drawing_on_tpus(shapes, topology, mesh):
    report = drawn(shapes, topology, mesh)
    # The heads of the projector and the resampler are too small for splash.
    assert calls(report["kernels"], "splash_mha_fwd") == 2 * 2 * 2
    assert report["seconds by the compiler"]["products"] > 0


@pytest.mark.parametrize(("topology", "mesh"), ON_TPUS)
@pytest.mark.usefixtures("optax_promotes")
def test_training_on_tpus(shapes, topology, mesh):
    kernels = trained(shapes, topology, mesh)["kernels"]
    assert calls(kernels, "splash_mha_fwd") >= 4
    assert calls(kernels, "splash_mha_dq") == 3  # see test_training_on_gpus
    assert calls(kernels, "splash_mha_dkv") == 3


def calls(kernels, name):
    return sum(count for kernel, count in kernels.items() if kernel.startswith(name))
