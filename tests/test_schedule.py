"""Learning rates of a stage, by value against closed forms."""

import math

import pytest

from train.recipe import Stage
from train.schedule import learning_rate

PEAK, FLOOR, STEPS, WARMUP = 3e-4, 0.1, 1000, 100


def rate(step, **changes):
    settings = {"steps": STEPS, "warmup": WARMUP, "floor": FLOOR}
    return learning_rate(Stage(learning_rate=PEAK, **(settings | changes)), step)


def approx(value):
    return pytest.approx(value, rel=1e-5, abs=1e-6 * PEAK)  # float32 of optax


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_warm_up_is_linear_and_its_first_step_counts(schedule):
    for step in (0, 1, 49, 98, 99):
        assert rate(step, schedule=schedule) == approx(PEAK * (step + 1) / WARMUP)
    assert rate(WARMUP, schedule=schedule) == approx(PEAK)


@pytest.mark.parametrize("step", [100, 101, 325, 550, 775, 998, 999])
def test_falling_rates(step):
    passed = (step - WARMUP) / (STEPS - WARMUP)
    linear = 1 - (1 - FLOOR) * passed
    cosine = FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * passed)) / 2
    assert rate(step, schedule="constant") == approx(PEAK)
    assert rate(step, schedule="linear") == approx(PEAK * linear)
    assert rate(step, schedule="cosine") == approx(PEAK * cosine)
    falling = max(0, step - 800) / 200
    assert rate(step, schedule="wsd") == approx(PEAK * (1 - (1 - FLOOR) * falling))
    falling = max(0, step - 500) / 500
    assert rate(step, schedule="wsd", decay=0.5, floor=0.0) == approx(PEAK * (1 - falling))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_the_last_step_is_above_the_floor_by_one_step(schedule):
    last = rate(STEPS - 1, schedule=schedule)
    assert PEAK * FLOOR < last < PEAK * (FLOOR + 0.006)
    assert rate(STEPS - 1, schedule=schedule, floor=1.0) == approx(PEAK)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 3, 7])
def test_stages_of_any_length_have_rates(schedule, warmup):
    for steps in (1, 2, 5):
        stage = Stage(steps=steps, warmup=warmup, schedule=schedule, learning_rate=PEAK)
        rates = [learning_rate(stage, step) for step in range(steps)]
        assert rates[0] == approx(PEAK / max(1, warmup))
        assert all(0 < value <= PEAK * (1 + 1e-6) for value in rates)
