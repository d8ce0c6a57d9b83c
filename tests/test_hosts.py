"""Several processes on this machine's loopback, as hosts of a cluster would run."""

import argparse
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ic_jax import hosts
from tests.oracle import relative
from tests.toy import write_data, write_model
from train.__main__ import main
from train.checkpoints import Checkpoints
from train.recipe import Saving

ROOT = Path(__file__).parent.parent

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


RECIPE = """
model = "{folder}/model"
data = "{folder}/data"
cache = "{folder}/cache"
out = "{out}"
dtype = "float32"
text_length = 16
mesh = "data=2,fsdp=4"
[lora]
rank = 2
targets = ["attn.to_q"]
[saving]
every = 1
keep = 3
[reporting]
every = 1
preview_every = 0
[stage1]
steps = 3
batch = 8
resolution = 32
learning_rate = 1e-2
warmup = 1
remat = "none"
"""


class Hosts:
    """Four processes of two devices each, one program."""

    def __init__(self, folder, *command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{free.getsockname()[1]}"
        flags = [["--coordinator", where, "--hosts", "4", "--host", str(i)] for i in range(4)]
        self.processes = [start(folder, 2, *command, *own) for own in flags]

    def wait(self, limit=1200):
        """Exit code, output and errors of each; none may go on for ever."""
        try:
            told = [process.communicate(timeout=limit) for process in self.processes]
            return [(p.returncode, *x) for p, x in zip(self.processes, told, strict=True)]
        finally:
            for process in self.processes:
                process.kill()


def start(folder, devices, *command):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        # Of several hosts JAX writes for the first alone, and gloo waits 30 s for the others.
        "JAX_ENABLE_COMPILATION_CACHE": str(devices == 8),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.host", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class World:
    """Runs by four processes and by one, of a LoRA on a cache: the smallest program to compile."""

    def __init__(self, folder):
        self.folder = folder
        write_model(folder / "model")
        write_data(folder)
        assert main(["cache", str(self.recipe("cached"))]) == 0

    def recipe(self, run):
        file = self.folder / f"{run}.toml"
        file.write_text(RECIPE.format(folder=self.folder, out=self.folder / run))
        return file

    def train(self, run, how="train"):
        """By four processes: exit code, output and errors of each."""
        return Hosts(self.folder, how, str(self.recipe(run))).wait()

    def train_alone(self, run):
        process = start(self.folder, 8, "train", str(self.recipe(run)))
        _, err = process.communicate()
        assert process.returncode == 0, err

    def begun(self, run, of):
        """A run that has got as far as step 2 of another one."""
        shutil.copytree(self.folder / of, self.folder / run)
        shutil.rmtree(self.folder / run / "checkpoints" / "3")
        (self.folder / run / "manifests" / "3.json").unlink()

    def lines(self, run):
        text = (self.folder / run / "metrics.jsonl").read_text()
        return {line["step"]: line for line in map(json.loads, text.splitlines())}

    def losses(self, run):
        return [line["loss"] for _, line in sorted(self.lines(run).items())]

    def saved(self, run, step):
        """Every array of a checkpoint by its name, read by this process alone."""
        reader = Checkpoints(self.folder / run, Saving(), read_only=True)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        arrays = {}
        for name, text in reader.facts(step)["arrays"].items():
            dtype, shape = re.fullmatch(r"(\w+)\[(.*)\]", text).groups()
            sizes = [int(size) for size in shape.split(",") if size]
            arrays[name] = jax.ShapeDtypeStruct(sizes, dtype, sharding=here)
        reader.close()
        folder = self.folder / run / "checkpoints" / str(step) / "state"
        return ocp.StandardCheckpointer().restore(folder.absolute(), arrays)

    def resumed(self, run):
        """What the hosts of a run had of its state when they had read it: pieces by name."""
        for file in sorted((self.folder / run).glob("resumed-*.pickle")):
            yield from pickle.loads(file.read_bytes())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    made.train_alone("alone")
    ended = made.train("together")
    assert [code for code, *_ in ended] == [0] * 4, ended
    return made


def test_four_hosts_train_as_one(world):
    np.testing.assert_allclose(world.losses("together"), world.losses("alone"), rtol=1e-5)
    ours, theirs = (world.saved(run, 3) for run in ("together", "alone"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert not np.any(theirs[name]) or relative(array, theirs[name]) < 1e-5, name
    # One host reports, and only checkpoints are written by all.
    assert list(world.lines("together")) == [1, 2, 3]
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
    assert world.losses(run)[-1] == pytest.approx(world.losses(of)[-1], rel=1e-6)


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
    np.testing.assert_allclose(world.losses("killed"), world.losses("alone"), rtol=1e-5)
