"""The moving average of the weights: its warm-up, what it goes over, and what export says of it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import averages
from train.export import _average_in_words
from train.recipe import Recipe, Stage
from train.step_settings import numbers


def recipe(*stages):
    named = {f"stage{i}": stage for i, stage in enumerate(stages, 1)}
    return Recipe(Path("m"), Path("d"), Path("o"), named)


def averaged(recipe, path):
    """The average after each step over a path of parameters, step by step as training has it."""
    average, before = 0.0, averages.steps_before(recipe)
    steps = [(n, i, stage) for n, stage in recipe.stages.items() for i in range(stage.steps)]
    for params, (name, i, stage) in zip(path, steps, strict=False):
        decay = float(numbers(stage, i, 1.0, before[name])["ema"])
        average = decay * average + (1 - decay) * params
        yield average


def test_a_short_run_averages_what_it_trained():
    ones = np.ones(100)
    *_, last = averaged(recipe(Stage(steps=100, ema=0.999)), ones)
    assert last == pytest.approx(1.0, abs=1e-9)  # without warm-up, 0.095
    *_, last = averaged(recipe(Stage(steps=100, ema=0.999)), np.arange(1, 101) / 100)
    assert last == pytest.approx(0.9, abs=0.01)


def test_after_a_stage_without_average_it_begins_anew():
    stages = (Stage(steps=4, ema=0.9), Stage(steps=2, ema=0.0), Stage(steps=4, ema=0.9))
    settings = recipe(*stages)
    assert averages.steps_before(settings) == {"stage1": 0, "stage2": 4, "stage3": 0}
    values = list(averaged(settings, np.arange(10.0)))
    assert values[5] == 5.0
    assert values[6] == pytest.approx(0.1 * 5 + 0.9 * 6)


def test_over_how_many_steps_it_goes():
    long = recipe(Stage(steps=20_000, ema=0.99))
    assert averages.effective_steps(long, 20_000) == pytest.approx(1.99 / 0.01)
    short = recipe(Stage(steps=100, ema=0.999), Stage(steps=5, ema=0.0))
    basis = [list(averaged(short, row))[-1] for row in np.eye(100)]
    expected = 1 / np.square(basis).sum()
    assert averages.effective_steps(short, 100) == pytest.approx(expected)
    assert 20 < expected < 25
    assert averages.effective_steps(short, 105) == 1.0


def test_export_warns_of_an_average_that_fell_behind():
    start, last = {"a": jnp.zeros(3), "b": jnp.ones(4)}, {"a": jnp.ones(3), "b": jnp.zeros(4)}
    between = {
        share: jax.tree.map(lambda s, x, f=share: s + f * (x - s), start, last)
        for share in (0.1, 0.9)
    }
    settings = recipe(Stage(steps=100))
    near = averages.ways(start, between[0.9], last)
    assert (near.average, near.last) == pytest.approx((0.9 * 7**0.5, 7**0.5))
    text = _average_in_words(settings, 100, near)
    assert "an average over 22 steps" in text
    assert "changed by 2.381 since the start, the last weights by 2.646" in text
    with pytest.warns(UserWarning, match=r"by 0\.2646 .* by 2\.646; .* 2\.381 apart; .* --no-ema"):
        _average_in_words(settings, 100, averages.ways(start, between[0.1], last))
