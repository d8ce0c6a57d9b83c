"""Several processes on this machine's loopback, as a cluster would run them."""

import argparse
import json
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from jax._src import distributed

from ic_jax import cli, multihost
from ic_jax.multihost import heartbeat
from ic_jax.multihost.processes import proxied_coordinator
from tests.multihost_runs import Processes, Runs

slow = pytest.mark.slow  # four processes on this machine's loopback, each of which starts JAX
ALONE = {"TPU_SKIP_MDS_QUERY": "1"}  # what JAX sets where there is no TPU


def test_nothing_happens_alone():
    multihost.initialize()
    multihost.initialize(num_processes=1)
    assert not multihost.is_multiprocess()
    assert multihost.is_first()
    assert (multihost.process_index(), multihost.process_count()) == (0, 1)
    multihost.barrier("nobody else", 0)
    assert multihost.failed_process(ValueError("UNAVAILABLE: nobody")) is None
    assert multihost.exit_together(3, "an error") == 3


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, "Open MPI"),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "16", "SLURM_PROCID": "3"}, "SLURM"),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "16"}, None),  # the batch script itself
        # a shell on one node of a larger job
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "GKE"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "GKE"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a notebook, say
    ],
)
def test_what_the_environment_says(environment, kind):
    assert multihost.detect_cluster(ALONE | environment) == kind


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", 2, None), "all of --coordinator, --num-processes"),
        ((None, 4, None), "or --num-processes 1"),
        (("node-a", 2, 0), "--coordinator node-a: write HOST:PORT"),
        (("a:1", 2, 2), "--process-id 2 of --num-processes 2"),
        (("a:1", 2, -1), "--process-id -1"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(ValueError, match=message):
        multihost.check_flags(*flags)


def test_flags_are_read():
    parser = argparse.ArgumentParser()
    cli.add_multiprocess(parser)
    args = parser.parse_args(["--coordinator", "a:1", "--num-processes", "4", "--process-id", "3"])
    multihost.check_flags(args.coordinator, args.num_processes, args.process_id)
    nothing = {"coordinator": None, "num_processes": None, "process_id": None}
    assert vars(parser.parse_args([])) == nothing


def test_a_process_without_a_new_heartbeat_counts_as_dead():
    beats, dead = heartbeat.update_beats({0: ("", 0.0), 1: ("", 0.0)}, {0: "1", 1: "1"}, 10.0)
    assert not dead
    beats, dead = heartbeat.update_beats(beats, {0: "2", 1: "1"}, 10.0 + heartbeat.TIMEOUT)
    assert not dead
    beats, dead = heartbeat.update_beats(beats, {0: "2", 1: "1"}, 10.1 + heartbeat.TIMEOUT)
    assert dead == [1]
    assert beats == {0: ("2", 10.0 + heartbeat.TIMEOUT), 1: ("1", 10.0)}


@pytest.mark.parametrize("extension", [None, SimpleNamespace()])
def test_a_jax_without_the_private_function_is_used_as_it_is(monkeypatch, extension):
    monkeypatch.setattr(distributed, "_jax", extension)
    with (
        pytest.warns(UserWarning, match="if process 0 dies, the other processes end with JAX's"),
        proxied_coordinator(),
    ):
        assert distributed._jax is extension


@slow
def test_a_barrier_names_who_is_missing_and_stopping_is_agreed(tmp_path):
    """Four bare processes; see `tests.process`."""
    ended = Processes(tmp_path, "meet").wait()
    lines = [json.loads(out.splitlines()[-1]) for _, out, _ in ended]
    # Process 1 was asked to stop at the second step; all hear of it two steps later.
    assert [line["stopping"] for line in lines] == [[False, False, False, True]] * 4
    assert [line["first"] for line in lines] == [True, False, False, False]
    for code, _, err in ended[:3]:
        assert code == 69
        assert re.search(r"error: .*barrier 'here': waited 3 s for process 3 \(\S+\);", err), err
    assert ended[3][0] == 69  # it heard of the others' end


@slow
def test_the_others_end_when_process_0_is_killed(tmp_path):
    """While one waits for it, one computes and one is in a collective."""
    first, *others = Processes(tmp_path, "lose the first").wait(120)
    assert first[0] == -signal.SIGKILL
    for code, _, err in others:
        assert code == 69, err
        errors = re.findall("^error: .*", err, re.MULTILINE)
        assert len(errors) == 1, err
        assert re.match(r"error: process 0 \(\S+\) ended or cannot be reached; see", errors[0])


# A LoRA's step on a cache is the smallest program to compile.
KEYS = """
lora.rank = 2
lora.targets = ["attn.to_q"]
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"), KEYS)
    runs.train_alone("alone")
    ended = runs.train("together")
    assert [code for code, *_ in ended] == [0] * 4, ended
    return runs


@slow
def test_four_processes_train_as_one(runs):
    np.testing.assert_allclose(
        runs.values("together", "loss"), runs.values("alone", "loss"), rtol=1e-5
    )
    runs.check_same("together", "alone", 3)
    # One process reports, and only checkpoints are written by all.
    assert runs.values("together", "step") == [1, 2, 3]
    assert len(list((runs.folder / "together" / "tensorboard").iterdir())) == 1


@slow
def test_saved_by_four_resumed_by_one(runs):
    runs.copy_of_step_2("by one", "together")
    runs.train_alone("by one")
    check_resumed(runs, "by one", "together")


@slow
def test_saved_by_one_resumed_by_four(runs):
    runs.copy_of_step_2("by four", "alone")
    ended = runs.train("by four")
    assert [code for code, *_ in ended] == [0] * 4, ended
    check_resumed(runs, "by four", "alone")


def check_resumed(runs, run, of):
    saved, shards = runs.saved(of, 2), list(runs.resumed(run))
    assert {name for name, *_ in shards} == saved.keys()
    for name, index, shard in shards:
        np.testing.assert_array_equal(shard, np.asarray(saved[name])[index], err_msg=name)
    assert runs.values(run, "loss")[-1] == pytest.approx(runs.values(of, "loss")[-1], rel=1e-6)


@slow
def test_a_process_killed_in_a_save(runs):
    """Its step does not count; the others end by themselves and name it."""
    *others, killed = runs.train("killed", "die in step 2's save")
    assert killed[0] == -signal.SIGKILL
    for code, _, err in others:
        assert code == 69, err
        silent = r"error: process 3 \(\S+\) gave no sign of life for 20 s; see what"
        assert re.search(silent, err), err
    assert [p.stem for p in (runs.folder / "killed" / "manifests").iterdir()] == ["1"]
    runs.train_alone("killed")
    assert {int(np.asarray(x)) for name, _, x in runs.resumed("killed") if name == ".step"} == {1}
    np.testing.assert_allclose(
        runs.values("killed", "loss"), runs.values("alone", "loss"), rtol=1e-5
    )
