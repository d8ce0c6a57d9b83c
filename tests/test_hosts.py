"""Several processes on this machine's loopback, as hosts of a cluster would run."""

import argparse

import pytest

from ic_jax import hosts

ALONE = {"TPU_SKIP_MDS_QUERY": "1"}  # what JAX sets where there is no TPU


def test_nothing_happens_alone():
    hosts.initialise()
    hosts.initialise(hosts=1)
    assert (hosts.several(), hosts.is_first(), hosts.index(), hosts.count()) == (False, True, 0, 1)
    hosts.barrier("nobody else", 0)
    assert hosts.lost(ValueError("UNAVAILABLE: nobody")) is None
    assert hosts.end(3, "an error") == 3


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
    assert hosts.cluster(ALONE | environment) == kind


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", 2, None), "all of --coordinator, --hosts and --host"),
        ((None, 4, None), "or --hosts 1"),
        (("node-a", 2, 0), "--coordinator node-a: write HOST:PORT"),
        (("a:1", 2, 2), "--host 2 of --hosts 2"),
        (("a:1", 2, -1), "--host -1"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(ValueError, match=message):
        hosts.check_flags(*flags)


def test_flags_are_read():
    parser = argparse.ArgumentParser()
    hosts.add_options(parser)
    given = parser.parse_args(["--coordinator", "a:1", "--hosts", "4", "--host", "3"])
    hosts.check_flags(given.coordinator, given.hosts, given.host)
    assert vars(parser.parse_args([])) == {"coordinator": None, "hosts": None, "host": None}


def test_who_is_silent_is_judged_by_the_time_of_its_last_sign():
    pulses, gone = hosts.judged({0: ("", 0.0), 1: ("", 0.0)}, {0: "1", 1: "1"}, 10.0)
    assert not gone
    pulses, gone = hosts.judged(pulses, {0: "2", 1: "1"}, 10.0 + hosts.SILENCE)
    assert not gone
    pulses, gone = hosts.judged(pulses, {0: "2", 1: "1"}, 10.1 + hosts.SILENCE)
    assert gone == [1]
    assert pulses == {0: ("2", 10.0 + hosts.SILENCE), 1: ("1", 10.0)}
