"""Several processes on this machine's loopback, as hosts of a cluster would run."""

import argparse
import json
import re
import signal

import numpy as np
import pytest

from ic_jax import cli, multihost
from ic_jax.multihost import heartbeat
from tests.world import Hosts, World

ALONE = {"TPU_SKIP_MDS_QUERY": "1"}  # what JAX sets where there is no TPU


def test_nothing_happens_alone():
    multihost.initialize()
    multihost.initialize(num_processes=1)
    assert (
        multihost.is_multiprocess(),
        multihost.is_first(),
        multihost.process_index(),
        multihost.process_count(),
    ) == (
        False,
        True,
        0,
        1,
    )
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


def test_who_is_silent_is_judged_by_the_time_of_its_last_sign():
    pulses, gone = heartbeat.update_beats({0: ("", 0.0), 1: ("", 0.0)}, {0: "1", 1: "1"}, 10.0)
    assert not gone
    pulses, gone = heartbeat.update_beats(pulses, {0: "2", 1: "1"}, 10.0 + heartbeat.TIMEOUT)
    assert not gone
    pulses, gone = heartbeat.update_beats(pulses, {0: "2", 1: "1"}, 10.1 + heartbeat.TIMEOUT)
    assert gone == [1]
    assert pulses == {0: ("2", 10.0 + heartbeat.TIMEOUT), 1: ("1", 10.0)}


def test_a_barrier_names_who_is_missing_and_stopping_is_agreed(tmp_path):
    """Four bare processes; see `tests.host`."""
    ended = Hosts(tmp_path, "meet").wait()
    lines = [json.loads(out.splitlines()[-1]) for _, out, _ in ended]
    # Host 1 was asked to stop at the second step; all hear of it two steps later.
    assert [line["stopping"] for line in lines] == [[False, False, False, True]] * 4
    assert [line["first"] for line in lines] == [True, False, False, False]
    for code, _, err in ended[:3]:
        assert code == 69
        assert re.search(r"error: .*barrier 'here': waited 3 s for host 3 \(\S+\);", err), err
    assert ended[3][0] == 69  # the others' end was told to it


def test_the_others_end_when_host_0_is_killed(tmp_path):
    """Whatever they are about: waiting for it, computing, or in a collective."""
    first, *others = Hosts(tmp_path, "lose the first").wait(120)
    assert first[0] == -signal.SIGKILL
    for code, _, err in others:
        assert code == 69, err
        found = re.findall("^error: .*", err, re.MULTILINE)
        assert len(found) == 1, err
        assert re.match(r"error: host 0 \(\S+\) ended or cannot be reached; see what", found[0])


# A LoRA's step on a cache is the smallest program to compile.
OWN = """
lora.rank = 2
lora.targets = ["attn.to_q"]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"), OWN)
    made.train_alone("alone")
    ended = made.train("together")
    assert [code for code, *_ in ended] == [0] * 4, ended
    return made


def test_four_hosts_train_as_one(world):
    np.testing.assert_allclose(
        world.values("together", "loss"), world.values("alone", "loss"), rtol=1e-5
    )
    world.check_same("together", "alone", 3)
    # One host reports, and only checkpoints are written by all.
    assert world.values("together", "step") == [1, 2, 3]
    assert len(list((world.folder / "together" / "tensorboard").iterdir())) == 1


def test_saved_by_four_resumed_by_one(world):
    world.begun("by one", "together")
    world.train_alone("by one")
    check_resumed(world, "by one", "together")


def test_saved_by_one_resumed_by_four(world):
    world.begun("by four", "alone")
    ended = world.train("by four")
    assert [code for code, *_ in ended] == [0] * 4, ended
    check_resumed(world, "by four", "alone")


def check_resumed(world, run, of):
    saved, pieces = world.saved(of, 2), list(world.resumed(run))
    assert {name for name, *_ in pieces} == saved.keys()
    for name, index, piece in pieces:
        np.testing.assert_array_equal(piece, np.asarray(saved[name])[index], err_msg=name)
    assert world.values(run, "loss")[-1] == pytest.approx(world.values(of, "loss")[-1], rel=1e-6)


def test_a_host_killed_in_a_save(world):
    """Its step does not count, the others end by themselves and say who is gone."""
    *others, killed = world.train("killed", "die in step 2's save")
    assert killed[0] == -signal.SIGKILL
    for code, _, err in others:
        assert code == 69, err
        assert re.search(r"error: host 3 \(\S+\) gave no sign of life for 20 s; see what", err), err
    assert [p.stem for p in (world.folder / "killed" / "manifests").iterdir()] == ["1"]
    world.train_alone("killed")
    assert {int(np.asarray(x)) for name, _, x in world.resumed("killed") if name == ".step"} == {1}
    np.testing.assert_allclose(
        world.values("killed", "loss"), world.values("alone", "loss"), rtol=1e-5
    )
