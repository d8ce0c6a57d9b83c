"""Runs in processes of their own on this machine's loopback: of four hosts, and of one."""

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.oracle import relative
from tests.toy import write_data, write_model
from train.checkpoints import Checkpoints
from train.commands import main
from train.recipe import Saving

ROOT = Path(__file__).parent.parent
# Dotted throughout, so that a test's own keys of any table may follow.
RECIPE = """
model = "{folder}/model"
data = "{folder}/data"
cache = "{folder}/cache"
out = "{out}"
dtype = "float32"
text_length = 16
mesh = "data=2,fsdp=4"
saving.every = 1
saving.keep = 3
reporting.every = 1
reporting.preview_every = 0
stage1.steps = 3
stage1.batch = 8
stage1.resolution = 32
stage1.learning_rate = 1e-2
stage1.warmup = 1
stage1.remat = "none"
"""


class Hosts:
    """Four processes of two devices each, one program."""

    def __init__(self, folder, *command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{free.getsockname()[1]}"
        flags = [
            ["--coordinator", where, "--num-processes", "4", "--process-id", str(i)]
            for i in range(4)
        ]
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
    """A process of `tests.host` on so many devices; programs are kept in the folder."""
    environment = os.environ | {
        "XDG_CACHE_HOME": str(folder / "kept"),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_PLATFORMS": "cpu",
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
    """A model, a data set and its cache, and runs by four processes and by one."""

    def __init__(self, folder, own):
        """`own` are keys of the recipe beside RECIPE's."""
        self.folder, self._recipe = folder, RECIPE + own
        write_model(folder / "model")
        write_data(folder)
        assert main(["cache", str(self.recipe("cached"))]) == 0

    def recipe(self, run):
        file = self.folder / f"{run}.toml"
        file.write_text(self._recipe.format(folder=self.folder, out=self.folder / run))
        return file

    def train(self, run, how="train"):
        """By four processes: exit code, output and errors of each."""
        return Hosts(self.folder, how, str(self.recipe(run))).wait()

    def train_alone(self, run):
        """By one process; what JAX compiled there, by name."""
        process = start(self.folder, 8, "train", str(self.recipe(run)))
        out, err = process.communicate()
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])["compiled"]

    def begun(self, run, of):
        """A run that has got as far as step 2 of another one."""
        shutil.copytree(self.folder / of, self.folder / run)
        shutil.rmtree(self.folder / run / "checkpoints" / "3")
        (self.folder / run / "manifests" / "3.json").unlink()

    def values(self, run, name):
        """What a run reported of one thing, from step to step."""
        text = (self.folder / run / "metrics.jsonl").read_text()
        return [line[name] for line in map(json.loads, text.splitlines()) if name in line]

    def saved(self, run, step):
        """Every array of a checkpoint by its name, read by this process alone."""
        reader = Checkpoints(self.folder / run, Saving(), read_only=True)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        arrays = {}
        for name, text in reader.run_metadata(step)["arrays"].items():
            dtype, shape = re.fullmatch(r"(\w+)\[(.*)\]", text).groups()
            sizes = [int(size) for size in shape.split(",") if size]
            arrays[name] = jax.ShapeDtypeStruct(sizes, dtype, sharding=here)
        reader.close()
        folder = self.folder / run / "checkpoints" / str(step) / "state"
        return ocp.StandardCheckpointer().restore(folder.absolute(), arrays)

    def check_same(self, run, of, step):
        """Every array of a checkpoint is that of another run's to 1e-5."""
        ours, theirs = (self.saved(one, step) for one in (run, of))
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            if np.any(theirs[name]):
                assert relative(array, theirs[name]) < 1e-5, name
            else:
                assert not np.any(array), name

    def resumed(self, run):
        """What the hosts of a run had of its state when they had read it: pieces by name."""
        for file in sorted((self.folder / run).glob("resumed-*.pickle")):
            yield from pickle.loads(file.read_bytes())
