"""Whole runs that train a style LoRA: loss, stops, and the file that is exported."""

import json
import os
import signal
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from ic_jax.weights import loading
from ic_jax.weights.lora.reading import read_lora
from tests.toy import write_data, write_model
from train import loop
from train.checkpoints import Checkpoints
from train.commands import main
from train.export import read_params, recipe_in
from train.lora import initial, published, with_lora
from train.models import load_models
from train.recipe import LoraConfig, Saving, read_recipe
from train.report import Report
from train.run_folder import Stopped
from train.setup import setup

pytestmark = pytest.mark.usefixtures("optax_promotes")

RECIPE = """
model = "{folder}/model"
data = "{folder}/data"
out = "{out}"
dtype = "float32"
text_length = 32
[lora]
rank = 4
alpha = 8
trigger = "discs"
[saving]
every = 16
[reporting]
every = 4
preview_every = 24
preview_prompts = ["a disc left", ""]
preview_steps = 2
[stage1]
steps = 32
batch = 8
resolution = 32
learning_rate = 1e-2
warmup = 4
ema = 0.5
text_dropout = 0.1
[stage2]
steps = 16
batch = 8
resolution = 32
learning_rate = 1e-2
ema = 0.5
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    write_model(folder / "model")
    write_data(folder)
    return folder


def recipe(world, name):
    file = world / f"{name}.toml"
    file.write_text(RECIPE.format(folder=world, out=world / name))
    return read_recipe(file)


@contextmanager
def compiled_programs():
    """Collect the names of the programs that JAX compiles or reads from its cache."""
    names = []

    def listen(event, seconds, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def uninterrupted(world):
    """An uninterrupted run: its base before and after, and the names of compiled programs."""
    opened = []

    def noted(recipe):
        run = setup(recipe)
        opened.append((run, jax.device_get(run.models.frozen.transformer)))
        return run

    with pytest.MonkeyPatch.context() as patched, compiled_programs() as names:
        patched.setattr(loop, "setup", noted)
        loop.train(recipe(world, "whole"))
    ((run, before),) = opened
    return before, jax.device_get(run.models.frozen.transformer), names


def trained(folder, *, ema):
    run_recipe = recipe_in(folder)
    base = loading.ModelFolder.open(run_recipe.model)
    return jax.device_get(read_params(folder, run_recipe, base, ema=ema))


def test_a_run_lowers_the_loss_and_leaves_the_base_alone(world, uninterrupted):
    before, after, programs = uninterrupted
    # Both stages have the same settings but for the steps.
    assert programs.count("jit(train_step)") == 1
    jax.tree.map(np.testing.assert_array_equal, before, after)
    lines = [json.loads(x) for x in (world / "whole/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert len(losses) == 12
    assert np.mean(losses[-4:]) < 0.8 * losses[0]
    assert not any("reference effect" in line for line in lines)
    shown = sorted(p.name for p in (world / "whole/previews").iterdir())
    assert shown == ["0000024.png", "0000032.png", "0000048.png"]
    step, weights = trained(world / "whole", ema=False)
    assert step == 48
    assert all(np.any(pair.b[...]) for pair in weights.values())


def test_stopped_and_resumed_it_ends_bit_equal(world, uninterrupted, monkeypatch, capsys):
    scalars = Report.scalars

    def stop(self, step, values):
        scalars(self, step, values)
        if step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Report, "scalars", stop)
        with pytest.raises(Stopped):
            loop.train(recipe(world, "stopped"))
    loop.train(recipe(world, "stopped"))
    said = capsys.readouterr().out
    assert f"out       {world / 'stopped'}: a new run" in said
    assert f"out       {world / 'stopped'}: resumed from step 20 of 48" in said
    assert "held out  nobody: a LoRA has no reference" in said
    assert "drawing previews after step 24" in said
    assert f"trained 48 steps: {world / 'stopped'}" in said
    for ema in (False, True):
        ours, theirs = (trained(world / name, ema=ema) for name in ("stopped", "whole"))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    checkpoints = Checkpoints(world / "stopped", Saving())
    assert checkpoints.run_metadata(48)["samples"] == {"seen": 48 * 8, "skipped": 0}
    checkpoints.close()
    file = world / "stopped.toml"
    assert main([str(file), "--no-compile-cache", "--set", "lora.rank=8"]) == 2


def test_the_exported_file_is_the_trained_average(world, uninterrupted, capsys):
    out = world / "style.safetensors"
    assert main(["export", str(world / "whole"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "draw with --trigger 'discs'" in said.out
    assert "an average over 3 steps, changed by" in said.out
    assert said.err == ""
    _, average = trained(world / "whole", ema=True)
    lora = read_lora(out)
    expected = published(average)
    assert lora.changes.keys() == expected.keys()
    for key, change in lora.changes.items():
        np.testing.assert_array_equal(change.a, expected[key].a)
        np.testing.assert_array_equal(change.b * change.scale, 2 * expected[key].b)
    again = read_recipe(world / "whole.toml", [f"lora.start={out}"])
    started = published(load_models(again, loading.ModelFolder.open(again.model)).params)
    for key, change in started.items():
        product = lora.changes[key].b @ lora.changes[key].a
        np.testing.assert_allclose(change.scale * change.b @ change.a, product, atol=1e-6)
    flux = loading.load_component(world / "model", "transformer")
    assert {key for _, key in lora.changes} == {
        name.replace("*", "0") for name in initial(flux, LoraConfig(), 0)
    }
    assert len(jax.tree.leaves(with_lora(flux, average))) > len(jax.tree.leaves(flux))
