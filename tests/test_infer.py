"""`python -m infer` as a person uses it: files, metadata, errors in one line, exit codes."""

import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from ic_jax.model_folder import ModelFolder
from infer.demo import MODEL
from infer.generate import main
from tests.conftest import GOLDENS, from_torch

REFERENCE = str(GOLDENS / "tiny_instantcharacter" / "reference.png")
STYLE = GOLDENS / "tiny_instantcharacter" / "style_lora.safetensors"
SMALL = ["--height=64", "--width=64", "--steps=2", "--max-sequence-length=32", "--dtype=float32"]


@pytest.fixture
def infer(tiny_model, tmp_path, capfd, monkeypatch):
    """Runs the command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=tiny_model):
        named = [] if model is None else ["--model", str(model)]
        code = main([*named, *SMALL, "--no-compile-cache", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


def test_draws_a_picture_that_tells_how_it_was_made(infer, tmp_path):
    code, out, _ = infer(
        "--subject", REFERENCE, "--prompt", "a girl", "--seed", 3, "--out", "girl.png"
    )
    assert code == 0
    picture = Image.open(tmp_path / "girl.png")
    assert picture.size == (64, 64)
    made = json.loads(picture.text["ic_jax"])
    assert made["prompt"] == "a girl"
    assert made["seed"] == 3
    assert made["num_inference_steps"] == 2
    assert made["subject"] == REFERENCE
    assert made["ic_jax"]
    for word in ("loaded", "encoded", "drew girl.png"):
        assert word in out
    assert [p.name for p in tmp_path.iterdir()] == ["girl.png"]


def test_prompts_from_a_file_with_several_seeds(infer, tmp_path):
    (tmp_path / "prompts.txt").write_text("a girl in the rain\n\na boy: 1/2\n")
    code, _, _ = infer("--prompts", "prompts.txt", "--seed", 1, 2, "--out", "drawn")
    assert code == 0
    names = sorted(p.name for p in (tmp_path / "drawn").iterdir())
    assert names == [
        "a-boy-1-2-001-seed1.png",
        "a-boy-1-2-001-seed2.png",
        "a-girl-in-the-rain-000-seed1.png",
        "a-girl-in-the-rain-000-seed2.png",
    ]
    pictures = [np.asarray(Image.open(tmp_path / "drawn" / name)) for name in names]
    assert all((a != b).any() for a, b in pairwise(pictures))


def test_lora_changes_the_picture(infer, tmp_path):
    assert infer("--prompt", "a girl", "--out", "plain.png")[0] == 0
    styled = (
        "--prompt",
        "a girl",
        "--lora",
        f"{STYLE}=0.8",
        "--trigger",
        "ink",
        "--out",
        "ink.png",
    )
    assert infer(*styled)[0] == 0
    plain, ink = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("plain", "ink"))
    assert (plain != ink).any()


def test_without_a_model_the_toy_draws_and_says_so(infer, tmp_path):
    code, out, _ = infer(model=None)
    assert code == 0
    assert "weights are random" in out
    assert Image.open(tmp_path / "out.png").size == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--height", "100"], 2, "height is 100"),
        (["--steps", "0"], 2, "num_inference_steps is 0"),
        (["--subject", "nobody.png"], 2, "nobody.png"),
        (["--prompts", "nowhere.txt"], 2, "nowhere.txt: No such file"),
        (["--lora", "style=strong"], 2, "'strong' is no number"),
        (["--trigger", "ink"], 2, "1 --trigger for 0 --lora"),
        (["--lora", REFERENCE], 3, "reference.png"),
        (["--guidance-scale", "nan"], 2, "guidance_scale is nan"),
        (["--model", "nowhere"], 2, "nowhere"),
        (["--model", "."], 3, "is not an ic_jax model"),
        (["--out", "there.png"], 2, "there.png exists"),
    ],
)
def test_errors_are_one_line_and_leave_no_file(infer, tmp_path, arguments, code, message):
    (tmp_path / "there.png").write_bytes(b"precious")
    found, _, err = infer("--prompt", "a girl", *arguments)
    assert found == code
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert [p.name for p in tmp_path.iterdir()] == ["there.png"]
    assert (tmp_path / "there.png").read_bytes() == b"precious"


def test_the_toy_model_is_the_golden_one_converted(tmp_path):
    fresh = from_torch(tmp_path / "fresh", "--dtype", "bfloat16")
    manifests = [json.loads((m / "manifest.json").read_text()) for m in (MODEL, fresh)]
    assert manifests[0]["components"] == manifests[1]["components"]
    ModelFolder.open(MODEL).verify()
