"""The adapter trained by two processes of four devices as by one, which starts again."""

import numpy as np
import pytest

from tests.multihost_runs import Runs

pytestmark = pytest.mark.slow  # starts training in four processes; each compiles, but for the last
KEYS = """
holdout = 0.6
reporting.effect_every = 1
reporting.effect_batches = 1
"""
LOSSES = ("loss", "loss/right reference", "loss/wrong reference")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"), KEYS, processes=2)
    runs.compiled = runs.train_alone("alone")
    return runs


def test_two_processes_train_the_adapter_as_one(runs):
    ended = runs.train("together")
    assert [code for code, *_ in ended] == [0] * 2, ended
    for name in LOSSES:
        ours, theirs = (runs.values(run, name) for run in ("together", "alone"))
        assert len(ours) == 3
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=name)
    runs.check_same("together", "alone", 3)


def test_a_second_start_compiles_nothing(runs):
    assert {"jit_train_step", "jit__measure", "jit_start"} <= set(runs.compiled)
    runs.copy_of_step_2("again", "alone")
    # Orbax cuts what it saves into pieces, with programs of milliseconds.
    assert set(runs.train_alone("again")) <= {"jit_slice"}
    for name in LOSSES:
        np.testing.assert_array_equal(runs.values("again", name), runs.values("alone", name))
