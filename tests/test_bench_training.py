"""`train bench` at toy size: random arguments that the step takes, and figures that agree."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

import train.commands
from ic_jax import auto_mesh
from ic_jax.measuring.sizes import size_of
from train import bench as train_bench
from train import flops
from train.models import components_of
from train.recipe import recipe_of
from train.step import train_step
from train.step_settings import static_arguments
from train.step_shapes import layout

FOLDERS = dict.fromkeys(("model", "data", "out"), "random")
STAGE = {"steps": 1, "batch": 2, "resolution": 32}


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ({"adapter": "instantcharacter"}, {}),
        ({"adapter": "instantcharacter", "cache": "made"}, {"focus": 0.5}),
        ({"lora": {"rank": 2}}, {}),
    ],
    ids=["adapter", "cached", "lora"],
)
def test_a_training_step_takes_the_random_arguments(more, settings, optax_promotes):
    recipe = recipe_of({**FOLDERS, **more, "text_length": 8, "stage1": STAGE | settings})
    stage, size = recipe.stages["stage1"], size_of("toy")
    used = components_of(recipe, previews=False) & size.configs.keys()
    shapes = auto_mesh.shapes(size.configs, jnp.float32)
    mesh, _ = layout(recipe, {}, shapes["adapter"], jax.devices()[:1])
    frozen = train_bench._frozen(recipe, size, used, mesh, False)
    params = train_bench._trainable(recipe, size, frozen, mesh)
    state, _ = train_bench._start(recipe, stage, params, mesh)
    inputs = train_bench._inputs(recipe, stage, size, mesh)
    static = static_arguments(stage, recipe.optimizer, recipe.dtype)

    def step(*arguments):
        return train_step(*arguments, **static)

    with jax.set_mesh(mesh):
        after, metrics = jax.eval_shape(step, state, frozen, *inputs)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics.per_example_loss.shape == (2,)


@pytest.mark.slow  # compiles a training step
def test_a_training_step(tmp_path, optax_promotes):
    file = tmp_path / "bench.json"
    options = ["--size", "toy", "--batch", "2", "--samples", "2", "--set", 'mesh="data=1"']
    assert train.commands.main(["bench", *options, "--json", str(file)]) == 0
    values = json.loads(file.read_text())
    assert values["training"] == {
        "size": "toy",
        "resolution": 32,
        "accumulate": 1,
        "remat": "blocks",
        "subjects": 1,
        "dtype": "bfloat16",
        "optimizer": "adamw",
        "average": True,
        "cache": False,
    }
    result = values["parts"]["batch 2"]["result"]
    assert result["mesh"] == "data=1"
    configs = size_of("toy").configs
    sample = flops.training_sample(
        configs["transformer"], 4, 8, configs["adapter"], configs["siglip"]
    )
    step = result["step"]
    assert step["TFLOP"] == pytest.approx(2 * sample / 1e12, rel=1e-3)
    assert step["TFLOP/s"] * step["ms"] / 1e3 == pytest.approx(step["TFLOP"], rel=2e-3)
    assert result["samples/s"] == pytest.approx(2e3 / step["ms"], rel=2e-3)
    # The program also runs the encoders, and the blocks again in the backward pass.
    assert result["program"]["counted TFLOP"] > step["TFLOP"]
    assert math.isfinite(result["loss"])
    assert result["gradient norm"] > 0
