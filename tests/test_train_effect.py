"""Who is held out to measure the reference effect on, and what is reported of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ic_jax.config import ConfigError
from train.data.characters import next_picture
from train.data.hashing import hash_names, is_held_out
from train.effect import ANOTHER, EFFECT, SAME, Effect, Rows, summary
from train.recipe import LoraConfig, Recipe, Stage
from train.stage_data import held_out_characters

RECIPE = Recipe(Path("m"), Path("d"), Path("o"), {"stage1": Stage(steps=1)})


def dataset(*pictures):
    """Characters c0, c1, ... with so many pictures each."""
    names = [f"c{i}" for i in range(len(pictures))]
    owners = np.repeat(np.arange(len(pictures)), pictures)
    values = {"characters": names, "character_hash": hash_names(names), "character": owners}
    return SimpleNamespace(path=Path("d"), others=np.empty((0, 2), np.int32), **values)


def test_two_are_held_out_where_the_fraction_gives_fewer():
    few = dataset(*[4] * 15)
    assert not any(is_held_out(name, RECIPE.holdout) for name in few.characters)
    mask = held_out_characters(RECIPE, few)
    assert mask.sum() == 2
    np.testing.assert_array_equal(mask, held_out_characters(RECIPE, few))
    many = dataset(*[1] * 400)
    by_fraction = [is_held_out(name, RECIPE.holdout) for name in many.characters]
    assert sum(by_fraction) > 2
    np.testing.assert_array_equal(held_out_characters(RECIPE, many), by_fraction)


def test_pairs_are_held_out_where_training_keeps_some():
    mask = held_out_characters(RECIPE, dataset(1, 1, 1, 1, 3, 3, 3, 3))
    assert mask[4:].sum() == 2
    mask = held_out_characters(RECIPE, dataset(1, 1, 1, 1, 3, 3, 3))
    assert mask[:4].sum() == 2


def test_too_few_to_hold_out_are_refused_unless_asked_for():
    three = dataset(4, 4, 4)
    with pytest.raises(ConfigError, match=r"has 3 characters: .* write holdout = 0"):
        held_out_characters(RECIPE, three)
    assert not held_out_characters(replace(RECIPE, holdout=0.0), three).any()
    lora = replace(RECIPE, lora=LoraConfig(), holdout=1e-9)
    assert not held_out_characters(lora, dataset(*[4] * 15)).any()


def test_the_next_picture_is_another_of_the_character():
    index = SimpleNamespace(character=np.array([0, 1, 0, 2, 0]))
    assert [next_picture(index, i) for i in range(5)] == [2, 1, 4, 3, 0]


def test_copying_shows_in_the_effect_with_another_picture():
    """A row without a wrong reference counts nowhere, one without another picture in one effect."""
    rows = Rows(
        compared=np.array([True, True, True, False]),
        paired=np.array([False, True, False, False]),
        has_another=np.array([True, True, False, True]),
    )
    errors = Effect(
        right=np.array([1.0, 5.0, 2.0, 100.0]),
        counterpart=np.array([4.0, 2.0, 9.0, 100.0]),
        wrong=np.array([3.0, 3.0, 3.0, 100.0]),
    )
    values = summary(errors, rows)
    assert values[EFFECT] == pytest.approx(3.0 - 8 / 3)
    assert values["loss/wrong reference"] == 3.0
    assert values[SAME] == pytest.approx((2 + 1) / 2)
    assert values[ANOTHER] == pytest.approx((-1 - 2) / 2)
    none = rows._replace(has_another=np.zeros(4, bool))
    assert SAME not in summary(errors, none)
