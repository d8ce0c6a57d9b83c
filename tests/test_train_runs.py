"""Whole runs of `python -m train`: three stages, killed and stopped and resumed, and exported."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ic_jax.weights import loading
from infer.commands import main as infer
from tests.conftest import convert
from tests.toy import write_data, write_model
from train.commands import main
from train.export import read_params, recipe_in
from train.run_folder import owned

ROOT = Path(__file__).parent.parent
RECIPE = """
model = "{folder}/model"
data = "{folder}/data"
out = "{out}"
dtype = "float32"
text_length = 16
holdout = 0.6
[saving]
every = 4
keep = 2
[reporting]
every = 2
effect_every = 16
effect_batches = 1
preview_every = 0
[stage1]
steps = 16
batch = 4
resolution = 32
learning_rate = 1e-3
warmup = 4
accumulate = 2
[stage2]
steps = 16
batch = 4
resolution = 32
paired = 1.0
warmup = 4
accumulate = 2
[stage3]
steps = 8
warmup = 2
batch = 2
resolution = 48
paired = 0.5
subjects = 2
timesteps = "uniform"
focus = 0.5
"""


class World:
    """A model, a data set, and runs on them in processes of their own."""

    def __init__(self, folder):
        self.folder = folder
        write_model(folder / "model")
        write_data(folder, groups=12)
        self.environment = os.environ | {
            "XDG_CACHE_HOME": str(folder / "kept"),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TF_CPP_MIN_LOG_LEVEL": "3",  # no alarm about a slow compilation
        }

    def recipe(self, run):
        file = self.folder / f"{run}.toml"
        file.write_text(RECIPE.format(folder=self.folder, out=self.folder / run))
        return file

    def start(self, run, *options):
        command = [sys.executable, "-m", "train", str(self.recipe(run)), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )

    def finish(self, run, *options):
        process = self.start(run, *options)
        _, err = process.communicate()
        return process.returncode, err

    def last_step(self, run):
        file = self.folder / run / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0

    def weights(self, run):
        """Trainable parameters and their average, as the newest checkpoint has them."""
        folder = self.folder / run
        recipe = recipe_in(folder)
        base = loading.ModelFolder.open(recipe.model)
        (step, last), (_, average) = (
            read_params(folder, recipe, base, ema=ema) for ema in (False, True)
        )
        assert step == recipe.total_steps
        return jax.device_get((last, average))

    def step_programs(self):
        """The compiled training steps in JAX's cache."""
        return {file.name for file in (self.folder / "cache").glob("jit_train_step-*-cache")}


slow = pytest.mark.slow  # trains in a process of its own first, which takes two minutes of a core


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with one run, "whole", that was not interrupted."""
    world = World(tmp_path_factory.mktemp("world"))
    assert world.finish("whole") == (0, "")
    assert len(world.step_programs()) == 2  # stages 1 and 2 share theirs
    return world


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@slow
def test_a_run_reports_every_stage_and_leaves_the_base_alone(world):
    lines = [json.loads(x) for x in (world.folder / "whole/metrics.jsonl").read_text().splitlines()]
    losses = {x["step"]: x["loss"] for x in lines if "loss" in x}
    assert list(losses) == list(range(2, 41, 2))
    assert all(np.isfinite(loss) for loss in losses.values())
    effects = {x["step"] for x in lines if "reference effect" in x}
    assert {16, 32, 40} <= effects
    assert list((world.folder / "whole/tensorboard").iterdir())
    loading.ModelFolder.open(world.folder / "model").verify()


@pytest.mark.rare  # starts the command three times; `-m faults` kills it twenty times and more
def test_killed_at_random_moments_it_ends_bit_equal(world):
    rng = random.Random(0)
    kills = 0
    while kills < 2:
        before = world.last_step("killed")
        process = world.start("killed")
        deadline = rng.uniform(0.0, 0.5)
        while process.poll() is None and world.last_step("killed") <= before:
            time.sleep(0.01)
        time.sleep(deadline)
        if process.poll() is not None:  # done before its last kill: from the start again
            assert process.returncode == 0, process.communicate()[1]
            subprocess.run(["rm", "-r", str(world.folder / "killed")], check=True)
            continue
        process.kill()
        process.communicate()
        kills += 1
    code, err = world.finish("killed")
    assert code == 0, err
    assert_equal(world.weights("killed"), world.weights("whole"))
    steps = [
        json.loads(x)["step"]
        for x in (world.folder / "killed/metrics.jsonl").read_text().splitlines()
        if 'loss"' in x
    ]
    assert steps == list(range(2, 41, 2))
    names = {p.name for p in (world.folder / "killed/checkpoints").iterdir()}
    assert names == {"36", "40"}


@slow  # starts training three times
def test_stopped_by_signals_it_saves_and_goes_on_bit_equal(world):
    compiled = world.step_programs()
    for number, step in ((signal.SIGTERM, 6), (signal.SIGINT, 22)):
        process = world.start("stopped")
        while process.poll() is None and world.last_step("stopped") < step:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == 75, err
        assert "as asked; go on with: python -m train " in err
        saved = {int(p.name) for p in (world.folder / "stopped/checkpoints").iterdir()}
        assert max(saved) >= world.last_step("stopped")
    assert world.finish("stopped")[0] == 0
    assert_equal(world.weights("stopped"), world.weights("whole"))
    assert world.step_programs() == compiled


def run_here(world, run, *options):
    return main([str(world.recipe(run)), "--no-compile-cache", *options])


@slow
def test_two_runs_in_one_folder(world, capsys):
    with owned(world.folder / "twice"):
        assert run_here(world, "twice") == 2
    assert "another process is training in it" in capsys.readouterr().err


@slow
@pytest.mark.usefixtures("optax_promotes")
def test_other_settings_are_refused_on_resume(world, capsys):
    assert run_here(world, "whole", "--set", "seed=3") == 2
    assert "seed was 0 and is now 3" in capsys.readouterr().err
    assert run_here(world, "whole", "--set", "stage2.steps=20") == 2
    assert "finished stages was" in capsys.readouterr().err


@slow
def test_the_exported_adapter_is_drawn_with_and_converted(world, tmp_path):
    out = tmp_path / "exported"
    assert main(["export", str(world.folder / "whole"), "--out", str(out)]) == 0
    _, average = world.weights("whole")
    assert_equal(jax.device_get(loading.load_component(out, "adapter")), average)

    # to torch and back, bit for bit
    convert("to-torch", out, "--out", tmp_path / "torch")
    sources = ["--flux", "flux", "--adapter", "instantcharacter_ip-adapter.bin"]
    sources = [x if x.startswith("--") else str(tmp_path / "torch" / x) for x in sources]
    convert("from-torch", *sources, "--out", tmp_path / "again")
    assert_equal(jax.device_get(loading.load_component(tmp_path / "again", "adapter")), average)

    picture = tmp_path / "picture.png"
    command = ["--model", str(out), "--prompt", "a disc left", "--dtype", "float32"]
    command += ["--height", "32", "--width", "32", "--steps", "2", "--max-sequence-length", "16"]
    command += ["--subject", str(world.folder / "source/0-0.png"), "--out", str(picture)]
    assert infer([*command, "--no-compile-cache"]) == 0
    assert Image.open(picture).size == (32, 32)


@slow
def test_an_earlier_step_is_exported_whole_in_another_dtype(world, tmp_path, capsys):
    run, out = str(world.folder / "whole"), tmp_path / "exported"
    assert main(["export", run, "--out", str(out), "--step", "3"]) == 2
    assert "has checkpoints 36, 40" in capsys.readouterr().err
    command = ["export", run, "--out", str(out), "--step", "36"]
    assert main([*command, "--cast-base", "--dtype", "bfloat16"]) == 0
    assert "after step 36 of 40" in capsys.readouterr().out
    folder = loading.ModelFolder.open(out)
    for kind in loading.COMPONENTS:
        assert {str(t.dtype) for t in folder.tensors(kind).values()} == {"bfloat16"}
    of_end = world.weights("whole")[1]
    exported = loading.load_component(out, "adapter", "float32")
    different = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(exported), of_end)
    assert max(jax.tree.leaves(different)) > 1e-6


def test_exporting_what_is_no_run(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "is no run of `python -m train`" in capsys.readouterr().err
