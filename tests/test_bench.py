"""`infer bench` at toy size: every part of drawing, figures that agree, both forms, diffusers.

Nothing depends on how long anything takes.
"""

import importlib.metadata
import json
import math

import jax
import numpy as np
import pytest

import infer.commands
from ic_jax import cli, sampler
from ic_jax.config import CONFIGS
from ic_jax.measuring.kernel_profile import KINDS, OTHERS
from ic_jax.models.target import compiling_for
from infer.bench import drawing_parts
from infer.bench.bench_command import add_arguments, numbers_of
from infer.bench.drawing import Drawing, DrawingSettings
from infer.bench.parts import EVERY, TRAINING

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


def test_what_a_size_draws_by_default():
    parser = cli.Parser()
    add_arguments(parser)
    assert numbers_of(parser.parse_args(["--size", "small"]))["steps"] == 12
    with pytest.raises(ValueError, match="--height 20 is not a positive multiple of 16"):
        numbers_of(parser.parse_args(["--size", "toy", "--height", "20"]))
