"""The small model from nothing, by one command: rows on the device, states, and a whole toy run."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from examples.open_peeps.base_model import fit_state
from examples.open_peeps.base_model.fit import (
    FitOptions,
    HostRows,
    Interrupted,
    device_mesh,
    fit,
    fit_rows,
    learning_rate,
    step_program,
)
from examples.open_peeps.train_all.config import LARGE, STAGES, TOY, TRAINING
from examples.open_peeps.train_all.drawing import Drawing
from examples.open_peeps.train_all.programs import Programs, planned_step
from examples.open_peeps.train_all.rows import CROPS_BESIDE, BatchRows, DeviceRows
from examples.open_peeps.train_all.run import prepare
from examples.open_peeps.train_all.work import Work
from examples.open_peeps.world import draw
from ic_jax import InstantCharacterPipeline
from ic_jax.config import ConfigError

DONE = r"^{}: [\d.]+ s, \d+ steps"  # line of a finished stage
LARGEST = 16 * 2**20  # bytes of a file that is carried to another machine


def test_rows_are_taken_by_person_and_scene_while_more_come():
    numbers = {"crops": jax.ShapeDtypeStruct((2,), jnp.uint8)}
    numbers["pixels"] = jax.ShapeDtypeStruct((5, 1), jnp.uint8)
    rows = DeviceRows(numbers, 4)

    def add():
        if len(rows) < 4:
            n = np.arange(2, dtype=np.uint8) + len(rows)
            pixels = (10 * n[:, None] + np.arange(5, dtype=np.uint8))[..., None]
            rows.append({"crops": np.stack([n, n], 1), "pixels": pixels})

    paired = BatchRows(rows, ("crops", "pixels"), (1, 5), add)
    assert [len(paired), len(paired), len(paired)] == [8, 16, 16]
    batch = paired.take(np.array([0, 3, 15]))
    np.testing.assert_array_equal(batch["pixels"][:, 0], [1, 4, 34])
    np.testing.assert_array_equal(batch["crops"][:, 0], [0, 0, 3])
    alone = BatchRows(rows, ("pixels",), (0, 1), add)
    np.testing.assert_array_equal(alone.take(np.arange(4))["pixels"][:, 0], [0, 10, 20, 30])
    rows.arrays["beside"] = jnp.array([[0, 1, 0, 0, 2]] * 4, jnp.int16)
    beside = BatchRows(rows, ("crops", CROPS_BESIDE), (1, 5), add).take(np.array([0, 1, 3]))
    assert beside.keys() == {"crops", CROPS_BESIDE}
    np.testing.assert_array_equal(beside[CROPS_BESIDE][:, 0], [1, 0, 2])
    rows.compute(lambda x: {"double": 2 * x}, "pixels")
    np.testing.assert_array_equal(rows.arrays["double"], 2 * rows.arrays["pixels"])


def test_a_state_is_kept_in_files_that_can_be_carried(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_state, "PART", 1000)
    state = {"a": jnp.arange(1200.0), "b": jnp.zeros((), jnp.int32), "c": jnp.ones((3, 0))}
    fit_state.save(tmp_path / "s", state, [1.0, 2.0], 3.5)
    assert max(f.stat().st_size for f in (tmp_path / "s").iterdir()) <= 1000
    (tmp_path / "s").rename(tmp_path / "s.old")  # killed between two renames
    again, losses, seconds = fit_state.restore(tmp_path / "s", jax.eval_shape(lambda: state))
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert (losses, seconds) == ([1.0, 2.0], 3.5)


def test_a_rate_rises_by_steps_and_falls_to_zero_with_the_share_that_is_over(tmp_path):
    options = FitOptions(0, 8, 0.1, 0, tmp_path, warmup=10, seconds=60)
    rates = [learning_rate(options, step, share) for step, share in ((0, 0), (9, 0), (50, 0.5))]
    np.testing.assert_allclose(rates, [0.01, 0.1, 0.05])
    assert learning_rate(options, 3, 0.5) == rates[2]  # however few its steps are
    assert learning_rate(options, 99, 1.5) == 0


def test_a_step_that_is_not_finite_changes_nothing_and_many_end_the_training(tmp_path):
    options = FitOptions(0, 8, 0.1, 0, tmp_path / "state", seconds=1e9)
    weights = []

    def step(state, frozen, batch, key, rate):
        weights.append(jax.device_get(state.module["w"]))
        lost = len(weights) == 3 or len(weights) > 10
        return program(state, np.float32(np.nan if lost else 1), batch, key, rate)

    program = step_program(
        lambda m, scale, batch, key: scale * jnp.square(m["w"][None] - batch).mean()
    )
    rows = HostRows(np.ones((16, 3), np.float32))
    with (
        jax.numpy_dtype_promotion("standard"),  # for optax
        pytest.raises(FloatingPointError, match="toy: the last 20 losses are not finite"),
    ):
        fit_rows("toy", {"w": jnp.zeros(3)}, step, rows, options)
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(weights)]
    assert changed[:4] == [True, True, False, True]
    assert not any(changed[10:])
    assert np.isfinite(weights[-1]).all()


def test_a_training_by_seconds_stops_when_asked_and_goes_on(tmp_path):
    data = np.ones((16, 3), np.float32)
    options = FitOptions(0, 8, 0.1, 0, tmp_path / "state", seconds=1e-3)
    loss = lambda m, batch, key: jnp.square(m["w"][None] - batch).mean()  # noqa: E731

    def run(seconds, stop=lambda: False):
        with jax.numpy_dtype_promotion("standard"):  # for optax
            options = FitOptions(0, 8, 0.1, 0, tmp_path / "state", seconds=seconds, stop=stop)
            return fit("toy", {"w": jnp.zeros(3)}, loss, data, options)

    with pytest.raises(Interrupted, match="stopped in toy"):
        run(1e9, lambda: True)
    assert len(fit_state.read_losses(options.checkpoint)) == 1
    run(1e-3)  # its seconds are over: what is saved is the result
    assert len(fit_state.read_losses(options.checkpoint)) == 1


def test_a_request_to_stop_is_obeyed_while_data_is_drawn_and_programs_are_compiled(tmp_path):
    files, tasks = prepare(TOY)
    drawing = Drawing(tmp_path, TOY, files, workers=1, stop=lambda: True)
    try:
        with pytest.raises(Interrupted, match="stopped in the drawing of the data"):
            drawing.wait(TOY.chunks + 1)
    finally:
        drawing.close()
    programs = Programs(tasks, [])
    programs._futures["vae",] = Future()  # one whose compiling never ends
    with pytest.raises(Interrupted, match="stopped in the compiling of vae"):
        programs.wait("vae", lambda: True)


def test_a_run_that_goes_on_draws_the_data_that_it_had_and_no_more(tmp_path):
    files, _ = prepare(TOY)
    drawing = Drawing(tmp_path, TOY, files, workers=1, stop=lambda: False, count=2)
    try:
        drawing.wait(1)
        while len(list(tmp_path.glob("*.npz"))) < 2:
            time.sleep(0.1)
        drawing.wait(1)  # whose rows an encoding of latents has counted
        assert (drawing.chunks, len(drawing.rows)) == (1, draw.PEOPLE)
        drawing.wait(2)
    finally:
        drawing.close()
    assert len(drawing.rows) == 2 * draw.PEOPLE
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_what_fails_in_drawing_is_raised_where_its_data_is_awaited(tmp_path, monkeypatch):
    def damaged(folder, number):
        raise OSError(f"{folder}: chunk {number} is damaged")

    monkeypatch.setattr(draw, "read_chunk", damaged)
    drawing = Drawing(tmp_path, TOY, prepare(TOY)[0], workers=1, stop=lambda: False, count=1)
    try:
        with pytest.raises(OSError, match="chunk 0 is damaged"):
            drawing.wait(1)
    finally:
        drawing.close()


def test_sizes_and_a_work_folder_that_keeps_its_settings(tmp_path):
    tokens = (LARGE.side // LARGE.vae.downscale // 2) ** 2
    assert (tokens, LARGE.vae.latent_channels) == (144, 16)
    assert TRAINING < 0.9
    assert TOY.stages.keys() == STAGES.keys()
    Work(tmp_path, TOY)
    Work(tmp_path, TOY)
    with pytest.raises(ConfigError, match="was begun with side 32, not 48"):
        Work(tmp_path, replace(TOY, side=48))


@pytest.mark.parametrize("stage", ["vae", "dinov2", "siglip", "base", "adapter1"])
def test_a_step_is_traced_in_bfloat16_with_a_float32_state(stage):
    config = replace(TOY, dtype=LARGE.dtype)
    step, (state, *inputs) = planned_step(prepare(config)[1], stage, device_mesh())
    with jax.numpy_dtype_promotion("standard"):  # for optax
        after, loss = step.eval_shape(state, *inputs)
    assert loss.dtype == jnp.float32
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]
    assert {x.dtype for x in jax.tree.leaves(after.module)} == {jnp.dtype("float32")}


@pytest.mark.slow  # compiles every model's training and drawing
def test_a_run_that_is_killed_goes_on_elsewhere_and_draws(tmp_path):
    def start(out):
        command = [sys.executable, "-m", "examples.open_peeps.train_all", "run", str(out)]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.Popen(
            [*command, "--toy", "--minutes", "0.05"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    first = start(tmp_path / "one")
    for line in first.stdout:
        if re.match(DONE.format("vae"), line):
            break  # and the next stage has begun
    first.send_signal(signal.SIGKILL)
    first.wait()
    # Another machine: nothing but the work folder without the data is carried there.
    (tmp_path / "other").mkdir()
    ignored = shutil.ignore_patterns("data")
    shutil.copytree(tmp_path / "one.work", tmp_path / "other" / "two.work", ignore=ignored)
    out = tmp_path / "other" / "two"
    second = start(out)
    text = second.communicate()[0]
    assert second.returncode == 0, text
    assert re.search(r"vae .*done: \d+ steps", text)
    assert not re.search(DONE.format("vae"), text, re.MULTILINE)
    assert re.search(DONE.format("dinov2"), text, re.MULTILINE)
    assert re.search(DONE.format("adapter3"), text, re.MULTILINE)
    for folder in (out, out.with_name("two.work")):
        assert max(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < LARGEST
    evaluation = out.with_name("two.evaluation")
    figures = json.loads((evaluation / "evaluation.json").read_text())
    assert {"known parts", "unseen parts", "two people"} <= figures.keys()
    with Image.open(evaluation / "known-parts.png") as sheet:
        assert sheet.width > 600
    pipe = InstantCharacterPipeline.from_pretrained(out, dtype="float32")
    picture = pipe("on yellow", seed=0, output_type="np").images[0]
    assert picture.shape == (TOY.side, TOY.side, 3)
