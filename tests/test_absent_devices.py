"""Sampler and training step, lowered for every platform and compiled for devices that are absent.

The models are small, but their heads and numbers of tokens are such that the kernels are those of
the full size: cuDNN's attention forward and backward, with odd numbers of tokens too, and splash.
"""

import argparse
import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from ic_jax import auto_mesh
from ic_jax.models.splash import splash
from ic_jax.models.target import compiling_for
from ic_jax.planning.topologies import over_whole_topology, topology_devices
from ic_jax.sharding import ShardingError, make_mesh, parse
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

EIGHT = "data=2,tensor=2,context=2"
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


def needs(module, name, *values):
    """Return parameters of a test that are skipped where the compiler is not installed."""
    missing = importlib.util.find_spec(module) is None
    reason = f"{module} is not installed"
    return pytest.param(*values, id=name, marks=pytest.mark.skipif(missing, reason=reason))


def slow(test):
    """Mark a test that compiles a whole program, which takes a minute or more of one core."""
    return pytest.mark.slow(pytest.mark.usefixtures("few_optimizations")(test))


@pytest.fixture
def few_optimizations():
    """At O1, XLA for TPUs compiles in half of its time what nobody will run."""
    before = jax.config.values["jax_optimization_level"]
    jax.config.update("jax_optimization_level", "O1")
    yield
    jax.config.update("jax_optimization_level", before)


ON_GPUS = [
    needs("jax_cuda13_plugin", "one H100", "h100:1", "data=1"),
    needs("jax_cuda13_plugin", "eight H100", "h100:8", EIGHT),
]
ON_TPUS = [
    needs("libtpu", "one v6e", "v6e:1x1", "data=1"),
    needs("libtpu", "eight v6e", "v6e:2x4", EIGHT),
]


@pytest.fixture(scope="module")
def shapes():
    return auto_mesh.shapes(CONFIGS, jnp.bfloat16)


def drawing_options(mesh):
    """Return the options of two pictures in two steps."""
    parser = argparse.ArgumentParser()
    drawing.add_arguments(parser)
    size = ("--height", str(SIDE), "--width", str(SIDE), "--text-length", str(TEXT))
    return parser.parse_args(["--mesh", mesh, *size, "--steps", "2", "--batch", "2"])


def training_recipe(mesh):
    """Return the recipe of a step of two samples; on a mesh of several each has two subjects."""
    values = dict.fromkeys(("model", "data", "out"), "none") | {"mesh": mesh, "text_length": TEXT}
    stage = {"steps": 1, "batch": 2, "resolution": SIDE, "subjects": 2 if mesh == EIGHT else 1}
    return recipe_of(values | {"stage1": stage})


def drawn(shapes, topology, mesh):
    (report,) = drawing.reports(drawing_options(mesh), shapes, topology_devices(topology))
    assert report["fits"]
    return report


def trained(shapes, topology, mesh):
    recipe = training_recipe(mesh)
    (report,) = training.step_reports(recipe, shapes, topology_devices(topology))
    assert report["fits"]
    return report


def calls(kernels, name):
    return sum(count for kernel, count in kernels.items() if kernel.startswith(name))


# The longest begin, or one core would wait for the other at the end.
@slow
@pytest.mark.parametrize(("topology", "mesh"), ON_GPUS)
@pytest.mark.usefixtures("optax_promotes")
def test_training_on_gpus(shapes, topology, mesh):
    kernels = trained(shapes, topology, mesh)["kernels"]
    # Of the first block's attention to all tokens there is no gradient: nothing trained is in it.
    assert kernels[BACKWARD] == 3 + 2 * 2 + 1
    encoders = 2 * 2 * 2  # both layers of SigLIP and DINOv2, at two resolutions
    assert kernels[FORWARD] >= 4 + 2 * 2 + 1 + encoders


@slow
@pytest.mark.parametrize(("topology", "mesh"), ON_TPUS)
@pytest.mark.usefixtures("optax_promotes")
def test_training_on_tpus(shapes, topology, mesh):
    kernels = trained(shapes, topology, mesh)["kernels"]
    assert calls(kernels, "splash_mha_fwd") >= 4
    assert calls(kernels, "splash_mha_dq") == 3  # see test_training_on_gpus
    assert calls(kernels, "splash_mha_dkv") == 3


@slow
@pytest.mark.parametrize(("topology", "mesh"), ON_TPUS)
def test_drawing_on_tpus(shapes, topology, mesh):
    report = drawn(shapes, topology, mesh)
    # The heads of the projector and the resampler are too small for splash.
    assert calls(report["kernels"], "splash_mha_fwd") == 2 * 2 * 2
    assert report["seconds by the compiler"]["products"] > 0


@slow
@pytest.mark.parametrize(("topology", "mesh"), ON_GPUS)
def test_drawing_on_gpus(shapes, topology, mesh):
    kernels = drawn(shapes, topology, mesh)["kernels"]
    # Both blocks attend to all tokens and to the subject in each step, both stacks of the projector
    # twice per picture, and the resampler once for all steps.
    assert kernels[FORWARD] == 2 * 2 * 2 + 2 * 2 + 1


@pytest.mark.slow  # compiles a kernel forward and backward, most of a minute of one core
@pytest.mark.parametrize(
    "topology", [needs("libtpu", "v4", "v4:2x2x1"), needs("libtpu", "v5p", "v5p:2x2x1")]
)
def test_attention_trains_in_the_on_chip_memory_of_every_tpu(topology):
    """At 1024 x 1024; a v6e, which has most, is in the tests above."""
    tokens, width, heads = 4096 + 512, 3072, 24
    device = topology_devices(topology)[0]

    @jax.checkpoint
    def block(x, kernel):
        joint = jnp.einsum("bnc,cgd->gbnd", x, kernel)
        q, k, v = joint.reshape(3, 1, tokens, heads, -1).swapaxes(2, 3)
        return x + splash(q, k, v).swapaxes(1, 2).reshape(x.shape), None

    def total(x, kernels):
        return jnp.square(jax.lax.scan(block, x, kernels)[0].astype(jnp.float32)).sum()

    def shaped(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=SingleDeviceSharding(device))

    x, kernels = shaped(1, tokens, width), shaped(2, width, 3, width)
    with compiling_for("tpu", device):
        lowered = jax.jit(jax.grad(total)).trace(x, kernels).lower()
    assert "splash_mha_fwd_residuals" in lowered.compile().as_text()


PLATFORMS = [  # as the models call it, a compute capability, JAX's name, kernels of attention
    ("cpu", "", "cpu", ""),
    ("gpu", "9.0", "cuda", FORWARD),
    ("gpu", "gfx942", "rocm", ""),
    ("tpu", "", "tpu", "splash_mha_fwd"),
]


@pytest.mark.parametrize(("platform", "capability", "name", "kernel"), PLATFORMS)
def test_drawing_lowers_for_every_platform(shapes, platform, capability, name, kernel, monkeypatch):
    mesh = make_mesh(parse(EIGHT))
    (program,) = drawing.programs(drawing_options(EIGHT), shapes, mesh)
    check_kernels(lowered(program, platform, capability, name, monkeypatch), kernel)


@pytest.mark.parametrize(("platform", "capability", "name", "kernel"), PLATFORMS)
@pytest.mark.usefixtures("optax_promotes")
def test_training_lowers_for_every_platform(
    shapes, platform, capability, name, kernel, monkeypatch
):
    mesh = make_mesh(parse(EIGHT))
    program = training.program(training_recipe(EIGHT), "stage1", shapes, mesh, replicate=False)
    text = lowered(program, platform, capability, name, monkeypatch)
    check_kernels(text, kernel)
    state = jax.tree.leaves(program.arguments[0])
    assert text.count("tf.aliasing_output") + text.count("jax.buffer_donor") == len(state)


def lowered(program, platform, capability, name, monkeypatch):
    """Return the text of a program lowered for a platform that need not be installed."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    device = SimpleNamespace(compute_capability=capability)
    return program.lower(platform, device, to=name).as_text()


def check_kernels(text, kernel):
    for other in (FORWARD, "splash_mha_fwd"):
        assert (other in text) == (other == kernel)


@pytest.mark.parametrize("topology", [needs("libtpu", "a pod", "v6e:16x16")])
def test_a_part_of_a_pod_is_planned_as_a_slice_of_its_own(topology):
    """libtpu compiles for no chips whose numbers are beyond the program's devices."""
    pod = topology_devices(topology)
    mesh = over_whole_topology(make_mesh(parse("data=4"), pod), pod)
    assert sorted(chip.id for chip in mesh.devices.flat) == [0, 1, 2, 3]
    rows = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    text = jax.jit(lambda x: x.sum(axis=0)).lower(rows).compile().as_text()
    assert "all-reduce" in text
    with pytest.raises(ShardingError, match="3 of 256 TPU chips: they form no rectangle"):
        make_mesh(parse("data=3"), pod)
    host = [chip for chip in topology_devices("v6e:2x4") if chip.process_index == 0]
    assert len(host) == 8
