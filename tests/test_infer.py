"""`python -m infer` as a person uses it: files, metadata, errors in one line, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ic_jax import InstantCharacterPipeline, LoraDelta, cli, write_lora
from ic_jax.config import CONFIGS, SamplingConfig
from ic_jax.weights.lora.writing import Training
from ic_jax.weights.model_folder import ModelFolder, create
from ic_jax.weights.tensors import WeightsError
from infer.commands import main
from infer.picture_file import read_metadata
from tests.conftest import CACHE, GOLDENS, from_torch

ROOT = Path(__file__).parent.parent
REFERENCE = str(GOLDENS / "tiny_instantcharacter" / "reference.png")
STYLE = GOLDENS / "tiny_instantcharacter" / "style_lora.safetensors"
TOY_MODEL = GOLDENS / "toy_model"
SIZE_WARNING = (
    "warning: this model was trained at 128 x 128 pixels; its pictures are worse at 64 x 64\n"
)
SMALL = ["--height=64", "--width=64", "--steps=2", "--max-sequence-length=32", "--dtype=float32"]


@pytest.fixture
def infer(tiny_model, tmp_path, capfd, monkeypatch):
    """Runs the command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=tiny_model):
        options = [*SMALL, *([] if model is None else [f"--model={model}"])]
        names = {str(argument).partition("=")[0] for argument in arguments}
        options = [option for option in options if option.partition("=")[0] not in names]
        code = main([*options, "--no-compile-cache", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


def test_draws_a_picture_that_tells_how_it_was_made(infer, tmp_path):
    code, out, _ = infer(
        "--subject", REFERENCE, "--prompt", "a girl", "--seed", 3, "--out", "girl.png"
    )
    assert code == 0
    picture = Image.open(tmp_path / "girl.png")
    assert picture.size == (64, 64)
    metadata = json.loads(picture.text["ic_jax"])
    assert metadata["prompt"] == "a girl"
    assert metadata["seed"] == 3
    assert metadata["num_inference_steps"] == 2
    assert metadata["subject"] == REFERENCE
    assert metadata["ic_jax"]
    for word in ("loaded", "encoded", "drew girl.png: seed 3, "):
        assert word in out
    first, *_, last = picture.text["parameters"].splitlines()
    assert first == "a girl"
    assert last.startswith("Steps: 2, Sampler: Euler, CFG scale: 1, Distilled CFG Scale: 3.5, Seed")
    assert [p.name for p in tmp_path.iterdir()] == ["girl.png"]


def test_prompts_from_a_file_with_several_seeds(infer, tmp_path):
    (tmp_path / "prompts.txt").write_text("a girl in the rain\n\na boy: 1/2\na girl in the rain\n")
    options = ("--seed", 1, 2, "--out", "drawn", "--grid", "sheet.webp")
    code, out, _ = infer("--prompts-file", "prompts.txt", *options)
    assert code == 0
    assert "1 of 3 prompts repeat another; equal prompts are drawn once" in out
    names = sorted(p.name for p in (tmp_path / "drawn").iterdir())
    assert names == [
        "a-boy-1-2-3fd117e9-seed1.png",
        "a-boy-1-2-3fd117e9-seed2.png",
        "a-girl-in-the-rain-9d63d48c-seed1.png",
        "a-girl-in-the-rain-9d63d48c-seed2.png",
    ]
    assert Image.open(tmp_path / "sheet.webp").height > 2 * 256
    pictures = [np.asarray(Image.open(tmp_path / "drawn" / name)) for name in names]
    assert all((a != b).any() for a, b in pairwise(pictures))


@pytest.fixture(scope="module")
def small_toy(tiny_model, tmp_path_factory):
    """The toy model with settings of its own."""
    toy, out = ModelFolder.open(tiny_model), tmp_path_factory.mktemp("toy") / "model"
    with create(out) as writer:
        for kind in toy.components:
            writer.add_from(toy, kind)
        writer.add_config("sampling", SamplingConfig(32, 48, 1, max_sequence_length=16).to_dict())
    return out


def test_a_models_own_settings_hold_where_none_are_given(small_toy, tmp_path):
    common = ["--model", str(small_toy), "--dtype=float32", "--no-compile-cache"]
    assert main([*common, "--prompt", "a girl", "--out", str(tmp_path / "girl.png")]) == 0
    picture = Image.open(tmp_path / "girl.png")
    assert picture.size == (48, 32)
    assert json.loads(picture.text["ic_jax"])["max_sequence_length"] == 16


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
    assert infer(*styled[:-1], "fused.png", "--fuse-lora")[0] == 0
    plain, ink, fused = (
        np.asarray(Image.open(tmp_path / f"{n}.png"), np.int32) for n in ("plain", "ink", "fused")
    )
    assert np.abs(plain - ink).max() > 1
    assert np.abs(fused - ink).max() <= 1  # of float32, rounded otherwise


def test_a_lora_is_read_before_the_model(infer, tmp_path, monkeypatch):
    """One for another model is refused; a trigger that its file names is said."""

    def load(*_, **__):
        raise ValueError("loads the model")

    monkeypatch.setattr(InstantCharacterPipeline, "from_pretrained", load)
    training, module = Training("ink drawing", "ic", 200), "transformer_blocks.0.attn.to_q"
    for inputs, code, message in ((63, 3, "for a map 63 -> 64"), (64, 2, "loads the model")):
        delta = LoraDelta(np.ones((2, inputs)), np.ones((64, 2)), 1.0)
        file, changes = tmp_path / f"{inputs}.safetensors", {("transformer", module): delta}
        write_lora(file, changes, np.dtype(np.float32), training=training)
        exit_code, out, err = infer("--prompt", "a girl", "--lora", file)
        assert (exit_code, message in err) == (code, True)
        assert ('--trigger "ink drawing" puts it first' in out) == (inputs == 64)


def test_without_a_model_the_small_one_draws_and_says_so(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--no-compile-cache"]) == 0
    assert "the small model" in capfd.readouterr().out
    picture = Image.open(tmp_path / "out.png")
    metadata = json.loads(picture.text["ic_jax"])
    assert picture.size == (metadata["width"], metadata["height"])
    colours = np.asarray(picture).reshape(-1, 3).std(0)
    assert (colours > 10).all()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--height", "100"], 2, "height is 100"),
        (["--steps", "0"], 2, "num_inference_steps is 0"),
        (["--subject", "nobody.png"], 2, "nobody.png"),
        (["--prompts-file", "nowhere.txt"], 2, "nowhere.txt: No such file"),
        (["--lora", "style=strong"], 2, "'strong' is no number"),
        (["--trigger", "ink"], 2, "1 --trigger for 0 --lora"),
        (["--fuse-lora"], 2, "--fuse-lora merges LoRAs, and there is none"),
        (["--lora", REFERENCE], 3, "reference.png"),
        (["--guidance-scale", "nan"], 2, "guidance_scale is nan"),
        (["--model", "nowhere"], 2, "nowhere"),
        (["--model", "."], 3, "is not an ic_jax model"),
        (["--out", "there.png"], 2, "there.png exists"),
        (["--subject", REFERENCE, "--subject-scale", "-1"], 2, "subject_scale is -1"),
        (["--out", "x" * 248 + ".png"], 2, "a name of 252 bytes is too long"),
        (["--lora", "style=nan"], 2, "'nan' is no number"),
        (["--sigmas", "1", "0.5"], 2, "--sigmas and --num-inference-steps exclude each other"),
        (["--grid", "x.png", "--out", "x.png"], 2, "--grid x.png is the name of a picture"),
        (["--grid", "there.png"], 2, "there.png exists but was made with other settings"),
        (["--from", "nobody.png"], 2, "nobody.png: there is no such picture"),
        (["--from", REFERENCE], 2, "does not tell how it was drawn"),
        (["--out", "there.png/x.png"], 2, "there.png"),
        (["--out", "/proc/x.png"], 74, "/proc: cannot be written to"),
        (["--negative-prompt", "dark"], 2, "a negative prompt does nothing"),
        (
            ["--subject", REFERENCE, "--negative-subject-scale", "0"],
            2,
            "negative_subject_scale does nothing",
        ),
        *(
            ([f"--{name}", value], 2, f"--{name} does nothing without a subject")
            for name, value in (
                ("subject-scale", "1"),
                ("negative-subject-scale", "0"),
                ("subject-fit", "pad"),
            )
        ),
        (["--seed", "-1"], 2, "seed -1 is not"),
        (["--num-images-per-prompt", "0"], 2, "num_images_per_prompt is 0"),
    ],
)
def test_errors_are_one_line_and_leave_no_file(infer, tmp_path, arguments, code, message):
    (tmp_path / "there.png").write_bytes(b"precious")
    exit_code, _, err = infer("--prompt", "a girl", *arguments)
    assert exit_code == code
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert [p.name for p in tmp_path.iterdir()] == ["there.png"]
    assert (tmp_path / "there.png").read_bytes() == b"precious"


def test_a_prompts_file_that_is_not_utf8_is_named(infer, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9")
    code, _, err = infer("--prompts-file", "prompts.txt")
    assert (code, "prompts.txt: byte 3 is not UTF-8" in err) == (2, True)
    (tmp_path / "prompts.txt").write_text("\ufeffa girl")
    assert infer("--prompts-file", "prompts.txt", "--out", "girl.png")[0] == 0
    assert json.loads(Image.open(tmp_path / "girl.png").text["ic_jax"])["prompt"] == "a girl"


def test_guidance_is_refused_where_the_model_takes_none(infer, monkeypatch):
    without = {"transformer": CONFIGS["flux-schnell"]}
    monkeypatch.setattr("infer.request.folder_configs", lambda _: without)
    code, _, err = infer("--prompt", "a girl", "--guidance-scale", 2)
    assert (code, "--guidance-scale does nothing: this model" in err) == (2, True)


def test_wrong_settings_are_found_before_the_model_is_loaded(infer, monkeypatch):
    def load(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr(InstantCharacterPipeline, "from_pretrained", load)
    for wrong in (["--steps", "0"], ["--height", "100"], ["--subject", "x.png"], ["--seed", "-1"]):
        assert infer("--prompt", "a girl", *wrong)[0] == 2


@pytest.mark.parametrize("options", [(), ("--subject", REFERENCE), ("--negative-prompt", "dark")])
def test_a_scene_must_be_said(infer, options):
    code, _, err = infer(*options)
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no scene to draw; give --prompt" in err


def test_a_picture_is_drawn_again_from_any_format(infer, tmp_path):
    """From PNG to AVIF to WebP to JPEG to PNG: the last is the first, pixel for pixel."""
    options = ("--subject", REFERENCE, "--lora", f"{STYLE}=0.123456789", "--trigger", "ink")
    options += ("--prompt", "ein Mädchen, 女孩", "--seed", 7, "--out", "1.png")
    assert infer(*options)[0] == 0
    names = ["1.png", "2.avif", "3.webp", "4.jpg", "5.png"]
    for source, name in pairwise(names):
        code = main(["--from", source, "--out", name, "--no-compile-cache"])
        assert code == 0
    metadata = [read_metadata(tmp_path / name) for name in names]
    assert all(x == metadata[0] for x in metadata)
    first, last = (np.asarray(Image.open(tmp_path / name)) for name in ("1.png", "5.png"))
    np.testing.assert_array_equal(first, last)


def test_nothing_is_replaced_without_out(infer, tmp_path):
    (tmp_path / "out.png").write_bytes(b"precious")
    code, out, _ = infer("--prompt", "a girl", "--steps", 1)
    assert code == 0
    assert "out is the name of a picture that exists; this run's name is out-2" in out
    assert "drew out-2.png" in out
    assert (tmp_path / "out.png").read_bytes() == b"precious"
    assert infer("--prompt", "a girl", "--steps", 1, "--overwrite")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out-2.png", "out.png"]
    assert read_metadata(tmp_path / "out.png")["prompt"] == "a girl"


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "infer", *arguments], cwd=ROOT, text=True, **options
    )


def test_pictures_are_drawn_though_nobody_reads_the_output(tmp_path):
    read, write = os.pipe()
    os.close(read)
    prompts = ["--prompt", "a", "--prompt", "an", "--out", str(tmp_path / "drawn")]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    process = command(*prompts, *SMALL, stdout=write, stderr=subprocess.PIPE, env=environment)
    os.close(write)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, SIZE_WARNING)
    assert len([*(tmp_path / "drawn").iterdir()]) == 2


def test_ctrl_c_while_compiling(tmp_path):
    process = command(
        *SMALL,
        "--no-compile-cache",
        "--mesh=data=1",  # on a mesh nothing compiles ahead, while the weights are read
        "--out",
        str(tmp_path / "x.png"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not process.stdout.readline().startswith("encoded"):
        assert process.poll() is None
    time.sleep(1.0)  # the sampler compiles for several seconds
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, SIZE_WARNING + "error: interrupted\n")
    assert not [*tmp_path.iterdir()]


COUNTED = """
import collections, json, sys
import jax
from infer.commands import main
from infer.picture_file import read_metadata

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.split("/")[-1]]))
assert main(sys.argv[1:]) == 0
print(json.dumps([counts[e] for e in ("compile_requests_use_cache", "cache_hits")]))
"""


def test_a_second_start_compiles_nothing(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    arguments = [*SMALL, "--prompt", "a person", "--out", str(tmp_path / "x.png"), "--overwrite"]

    def start():
        """Return the compilation cache's [requests, hits], and what was written to stderr."""
        run = [sys.executable, "-c", COUNTED, *arguments]
        done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    (requests, hits), err = start()
    assert (requests > 4, hits, err) == (True, 0, SIZE_WARNING)
    picture = (tmp_path / "x.png").read_bytes()
    assert start() == ([requests, requests], SIZE_WARNING)
    assert (tmp_path / "x.png").read_bytes() == picture


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WeightsError("x"), 3),
        (FloatingPointError("x"), 5),
        (ValueError("x"), 2),
        (OSError(28, "No space left on device"), 74),
        (MemoryError(), 1),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error, code, capsys):
    def command():
        raise error

    assert cli.run(command) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_the_toy_model_is_the_golden_one_converted(tmp_path):
    fresh = from_torch(tmp_path / "fresh", "--dtype", "bfloat16")
    manifests = [json.loads((m / "manifest.json").read_text()) for m in (TOY_MODEL, fresh)]
    assert manifests[0]["components"] == manifests[1]["components"]
    ModelFolder.open(TOY_MODEL).verify()
