"""Benchmarks at toy size: every part, files that are whole after every part, figures that agree.

Nothing depends on how long anything takes.
"""

import importlib.metadata
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infer.commands
import train.commands
from ic_jax import auto_mesh, cli, sampler
from ic_jax.config import CONFIGS
from ic_jax.measuring.kernel_profile import KINDS, OTHERS, kind_of
from ic_jax.measuring.parts import Budget, Part, Results, measure
from ic_jax.measuring.random_weights import random_module
from ic_jax.measuring.sizes import NAMES, size_of
from ic_jax.measuring.timing import Timing, rates
from ic_jax.models.target import compiling_for
from ic_jax.weights.loading import parameters
from infer.bench import drawing_parts, every_part
from infer.bench.bench_command import add_arguments, numbers_of
from infer.bench.drawing import Drawing, DrawingSettings
from infer.bench.parts import EVERY, TRAINING
from train import bench as train_bench
from train import flops
from train.models import components_of
from train.recipe import recipe_of
from train.step import train_step
from train.step_settings import static_arguments
from train.step_shapes import layout

TOY = DrawingSettings(
    size="toy",
    height=64,
    width=32,
    steps=2,
    batch=2,
    text_length=8,
    dtype="float32",
    adapter=True,
    samples=2,
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "bench.json"


def written(file):
    return json.loads(file.read_text())


def bench(file, *options):
    arguments = ["bench", "--size", "toy", "--samples", "2", "--json", str(file), *options]
    assert infer.commands.main(arguments) == 0
    return written(file)


def fail():
    raise ValueError("no\nway")


def test_a_part_that_fails_or_has_no_time_is_passed_over(file, capsys):
    results, seen = Results({"date": "today"}, file), []

    def look():
        seen.append(written(file)["parts"])
        return {"x": 1, "more": {"y": 2, "z": [3]}, "list": [4]}

    parts = [Part("bad", 0, fail), Part("long", 60, look), Part("good", 1, look)]
    measure(parts, results, Budget(30))
    bad, long, good = written(file)["parts"].values()
    assert bad["failed"] == "ValueError: no way"
    assert "in fail" in bad["traceback"]
    assert long["skipped"].endswith("s left, about 60 s needed")
    assert good["result"] == {"x": 1, "more": {"y": 2, "z": [3]}, "list": [4]}
    # While a part is measured, the file has those before it, whole.
    assert seen == [{"bad": bad, "long": long, "good": {"running": True}}]
    out = capsys.readouterr().out
    assert "bad: failed, ValueError: no way" in out
    assert "  x: 1\n  more: y 2\n" in out


def test_a_part_takes_longer_without_the_parts_that_it_uses():
    weights = Part("weights", 30, fail)
    step = Part("step", 60, fail, [weights])
    assert step.seconds_after({"weights": {"result": {}}}) == 60
    assert step.seconds_after({"weights": {"failed": "out of memory"}}) == 90
    assert step.seconds_after({}) == 90


def test_ctrl_c_leaves_what_was_measured(file):
    def interrupt():
        raise KeyboardInterrupt

    parts = [Part("done", 0, lambda: {"x": 1}), Part("cut", 0, interrupt), Part("later", 0, fail)]
    with pytest.raises(KeyboardInterrupt):
        measure(parts, Results({}, file), Budget(None))
    assert written(file)["parts"].keys() == {"done", "cut"}
    assert written(file)["parts"]["cut"] == {"interrupted": True}


def test_median_and_rates():
    timing = Timing((0.3, 0.1, 0.2)).to_dict()
    assert timing == {"ms": 200, "lowest ms": 100, "highest ms": 300, "samples": 3}
    assert rates(5e12, 2.0) == {"TFLOP": 5, "TFLOP/s": 2.5, "of peak": None}


def test_kinds_of_kernels():
    kernels = {
        "sm90_xmma_gemm_bf16bf16_bf16f32": "products",
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT": "products",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop": "attention",
        "splash_mha_fwd": "attention",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL": "collectives",
        "loop_dynamic_slice_fusion_3": "copies",
        "MemcpyD2D": "copies",
        "input_reduce_fusion_2": OTHERS,
    }
    assert {name: kind_of(name) for name in kernels} == kernels
    assert set(kernels.values()) == {*KINDS, OTHERS}


@pytest.mark.parametrize("size", NAMES)
def test_sizes_are_whole_and_divide_into_tokens(size):
    size = size_of(size)
    assert size.side % size.pixels_per_token == size.training_side % size.pixels_per_token == 0
    siglip, dinov2, adapter = (size.configs[k] for k in ("siglip", "dinov2", "adapter"))
    assert adapter.inner_dim == siglip.hidden_size + dinov2.hidden_size
    assert size.configs["t5"].d_model == size.configs["transformer"].joint_attention_dim
    assert size.configs["clip"].hidden_size == size.configs["transformer"].pooled_projection_dim


def test_random_weights_keep_rows_of_unit_size():
    config = size_of("toy").configs["transformer"]
    module = random_module("transformer", config, config, jnp.bfloat16)
    values = {path: np.asarray(x[...], np.float32) for path, x in parameters(module).items()}
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(module))
    for path, x in values.items():
        name = path.rpartition(".")[2]
        if name == "bias":
            assert not x.any()
        elif name == "kernel":
            assert np.std(x) == pytest.approx(x.shape[-2] ** -0.5, rel=0.2)
        else:
            assert (x == 1).all()
    # Parameters of equal shape differ, as do blocks.
    q, k = (values[f"transformer_blocks.*.attn.to_{name}.kernel"] for name in "qk")
    assert (q != k).mean() > 0.9
    assert (q[0] != q[1]).mean() > 0.9


def test_flops_of_a_published_step():
    """80.24 TFLOP, as XLA's program for a GPU has them (docs/benchmarks.md)."""
    settings = {**vars(TOY), "size": "flux-dev", "height": 1024, "width": 1024, "batch": 1}
    drawing = Drawing(DrawingSettings(**settings | {"text_length": 512}))
    assert drawing.step_flops == pytest.approx(80.24e12, rel=1e-4)
    assert drawing.configs["transformer"] is CONFIGS["flux-dev"]


@pytest.mark.slow  # compiles every program of drawing, twenty of attention and one variant
def test_every_part_of_drawing(file, capsys):
    names = [name for name in EVERY if name != TRAINING]
    options = ("--height", "64", "--width", "32", "--batch", "2", "--text-length", "8")
    values = bench(file, *options, "--only", *names)
    assert values["settings"] == vars(TOY)
    assert values["versions"].keys() >= {"python", "jax", "flax"}
    parts = values["parts"]
    assert [*parts] == names
    assert all("result" in part for part in parts.values()), parts
    r = {name: part["result"] for name, part in parts.items()}

    drawing = Drawing(TOY)
    step, picture = r["step"]["step"], r["picture"]["all"]
    assert step["TFLOP"] == pytest.approx(drawing.step_flops / 1e12, rel=1e-3)
    assert picture["TFLOP"] == pytest.approx(2 * step["TFLOP"], rel=1e-3)
    for figures in (step, picture, *r["attention"].values(), r["ceilings"]["square"]):
        assert figures["TFLOP/s"] * figures["ms"] / 1e3 == pytest.approx(figures["TFLOP"], rel=2e-3)
        assert figures["lowest ms"] <= figures["ms"] <= figures["highest ms"]
    assert r["picture"]["s a picture"] == pytest.approx(picture["ms"] / 2000, rel=1e-3)
    # What the program computes is at least what the model needs, of which norms are no part.
    assert step["TFLOP"] <= step["counted TFLOP"] < 1.5 * step["TFLOP"]
    assert r["step"]["finite"]
    assert r["picture"]["finite"]
    count = sum(x.size for x in jax.tree.leaves(drawing.models))
    assert r["weights"]["parameters"] == count
    assert r["weights"]["GB"] == pytest.approx(4 * count / 1e9, rel=1e-3)
    for entry in r["attention"].values():
        assert max(entry["error"], *map(float, entry["gradient errors"].split())) < 1e-5, entry
    profile = r["profile"]
    assert math.fsum(profile["ms"].values()) == pytest.approx(profile["ms of all"], rel=1e-2)
    assert profile["ms"]["products"] > 0
    assert {kernel["kind"] for kernel in profile["longest"]} <= {*KINDS, OTHERS}
    assert all(entry["finite"] for entry in r["encoders"].values()), r["encoders"]
    assert r["step"]["difference from stacked"] < 1e-5
    assert r["alone"]["step"]["TFLOP"] < step["TFLOP"]
    assert r["program"]["program"]["counted TFLOP"] > 2 * step["counted TFLOP"]
    usual, variant, again = r["variants"].values()
    assert variant["counted TFLOP"] == usual["counted TFLOP"]
    assert again.keys() < usual.keys()
    assert "TFLOP/s" in capsys.readouterr().out


@pytest.mark.slow  # compiles the programs of both forms
def test_the_form_for_gpus_gives_the_same_latents():
    with compiling_for("gpu"):
        drawing, stacked = Drawing(TOY), Drawing(TOY, stacked=True)
        assert drawing.compiler_options
        assert not stacked.compiler_options
        drawing_parts.stacked_step(stacked)
        assert drawing_parts.step(drawing, stacked)["difference from stacked"] < 1e-5
        latents = drawing.run_all_steps()
        whole = drawing.compile(sampler.sample, drawing.request)
    expected = whole.run(*drawing.models, drawing.request)
    np.testing.assert_allclose(latents, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # compiles the programs of drawing without a subject
def test_beside_diffusers(file, monkeypatch):
    import torch

    def refuse(model):
        raise RuntimeError("no compiler of C++")

    monkeypatch.setattr(torch, "compile", refuse)
    options = ("--height", "64", "--width", "32", "--batch", "2", "--text-length", "8")
    values = bench(file, *options, "--vs", "torch")
    assert not values["settings"]["adapter"]
    result = values["parts"]["torch"]["result"]
    eager = result["diffusers, eager"]
    assert eager["difference"] < 1e-5
    assert result["diffusers, compiled"] == {"failed": "RuntimeError: no compiler of C++"}
    names = ("ours, step", "ours, one call", "diffusers, eager", "product, JAX", "product, PyTorch")
    for entry in (result[name] for name in names):
        assert entry["TFLOP/s"] * entry["ms"] / 1e3 == pytest.approx(entry["TFLOP"], rel=2e-3)
    for ours in names[:2]:
        ratio = eager["ms"] / result[ours]["ms"]
        assert result[f"times as long as {ours}"] == {
            "diffusers, eager": pytest.approx(ratio, rel=2e-3)
        }
    assert result["conditions"]["diffusers"] == importlib.metadata.version("diffusers")
    assert result["conditions"]["attention"] == "native"


# A program in place of `python -m infer bench`: measures "a", and then something happens.
PROGRAM = """
import json, os, signal, sys, time

def write(**parts):
    file = sys.argv[sys.argv.index("--json") + 1]
    with open(file + ".part", "w") as out:
        json.dump({"settings": {"size": "toy"}, "parts": parts}, out)
    os.replace(file + ".part", file)

done = {"result": {"x": 1}, "seconds": 1}
write(a=done, b={"running": True})
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Write a program and return the command that `every_part.run` takes."""

    def write(then):
        (tmp_path / "program.py").write_text(PROGRAM + then)
        return ["program", "bench"]

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return write


@pytest.mark.parametrize(
    ("then", "entry"),
    [
        ("write(a=done, b=done)", {"result": {"x": 1}, "seconds": 1}),
        ("os.kill(os.getpid(), signal.SIGKILL)", {"failed": "its process ended with code -9"}),
    ],
)
def test_a_process_that_dies_takes_one_part_with_it(then, entry, program, file):
    results = Results({"date": "today"}, file)
    every_part.run(program(then), ["a"], results, Budget(None))
    done = {"result": {"x": 1}, "seconds": 1}
    assert written(file) == {
        "date": "today",
        "settings": {"size": "toy"},
        "parts": {"a": done, "b": entry},
    }


def test_a_process_that_measures_nothing(file, program, monkeypatch):
    results = Results({}, file)
    every_part.run(["no_such_program"], ["a", "b"], results, Budget(None))
    failed = {"failed": "its process ended with code 1"}
    assert written(file)["parts"] == {"a": failed, "b": failed}


def test_ctrl_c_ends_the_process(file, program):
    then = "os.kill(os.getppid(), signal.SIGINT); time.sleep(600)"
    results = Results({}, file)
    with pytest.raises(KeyboardInterrupt):
        every_part.run(program(then), ["a"], results, Budget(None))
    assert "result" in written(file)["parts"]["a"]
    assert written(file)["parts"]["b"] == {"interrupted": True}


def test_a_process_ends_with_the_budget(file, program):
    class Spent(Budget):
        """Enough to start; nothing is left once a part was measured."""

        @property
        def left(self):
            return -60.0 if "a" in results.parts else 60.0

    results = Results({}, file)
    every_part.run(program("time.sleep(600)"), ["a"], results, Spent(100))
    every_part.run(program(""), ["c"], results, Spent(100))
    parts = written(file)["parts"]
    assert parts["b"] == {"failed": "stopped, the budget was spent"}
    assert parts["c"] == {"skipped": "0 s left, about 10 s needed"}


def test_all_measures_in_processes_and_skips_what_has_no_time(file):
    values = bench(file, "--all", "--budget", "140", "--only", "machine", "training")
    machine, training = values["parts"].values()
    assert machine["result"]["platform"] == "cpu"
    assert training["skipped"].endswith("s left, about 150 s needed")
    # What the process says of itself is beside its parts.
    assert values["settings"]["dtype"] == "float32"
    assert values["budget s"] == 140


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [
        (131e9, "--batch 1 2"),
        (74e9, "h100.toml --set stage1.accumulate=1 --batch 1"),
        (None, "--batch 1 2"),
    ],
)
def test_a_smaller_gpu_trains_by_a_lean_recipe(limit, arguments):
    results = Results({}, None)
    results.put("machine", {"result": {"memory limit": limit}})
    assert " ".join(every_part._recipe(results)).endswith(arguments)
    assert every_part.LEAN_RECIPE.exists()


def test_all_refuses_numbers_before_it_starts_anything(file, capsys):
    arguments = ["bench", "--all", "--size", "toy", "--height", "20", "--json", str(file)]
    assert infer.commands.main(arguments) == 2
    assert "--height 20 is not a positive multiple of 16" in capsys.readouterr().err
    assert not file.exists()


def test_what_a_size_draws_by_default():
    parser = cli.Parser()
    add_arguments(parser)
    assert numbers_of(parser.parse_args(["--size", "small"]))["steps"] == 12
    with pytest.raises(ValueError, match="--height 20 is not a positive multiple of 16"):
        numbers_of(parser.parse_args(["--size", "toy", "--height", "20"]))


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
def test_a_training_step(file, optax_promotes):
    options = ["--size", "toy", "--batch", "2", "--samples", "2", "--set", 'mesh="data=1"']
    assert train.commands.main(["bench", *options, "--json", str(file)]) == 0
    values = written(file)
    assert values["training"] == {
        "size": "toy",
        "resolution": 32,
        "accumulate": 1,
        "remat": "blocks",
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
