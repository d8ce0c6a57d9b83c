"""The adapter trained by four processes of two devices as by one, which starts again."""

import numpy as np
import pytest

from tests.world import World

OWN = """
holdout = 0.6
reporting.effect_every = 1
reporting.effect_batches = 1
"""
LOSSES = ("loss", "loss/right reference", "loss/wrong reference")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"), OWN)
    made.compiled = made.train_alone("alone")
    return made


def test_four_hosts_train_the_adapter_as_one(world):
    ended = world.train("together")
    assert [code for code, *_ in ended] == [0] * 4, ended
    for name in LOSSES:
        ours, theirs = (world.values(run, name) for run in ("together", "alone"))
        assert len(ours) == 3
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=name)
    world.check_same("together", "alone", 3)


def test_a_second_start_compiles_nothing(world):
    assert {"jit(train_step)", "jit(_measure)", "jit(start)"} <= set(world.compiled)
    world.begun("again", "alone")
    # Orbax cuts what it saves into pieces, with programs of milliseconds.
    assert set(world.train_alone("again")) <= {"jit(slice)"}
    for name in LOSSES:
        np.testing.assert_array_equal(world.values("again", name), world.values("alone", name))
