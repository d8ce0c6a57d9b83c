"""Training runs by several processes on this machine's loopback, and by one."""

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
from tests.toy import CLIP, write_data, write_model
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
stage1.clip = {clip}
stage1.remat = "none"
"""


class Processes:
    """Processes that run one program, on eight devices together."""

    def __init__(self, folder, *command, number=4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = ["--coordinator", address, "--num-processes", str(number), "--process-id"]
        self.processes = [
            start(folder, 8 // number, *command, *flags, str(i)) for i in range(number)
        ]

    def wait(self, timeout=1200):
        """Return exit code, output and errors of each process; kill what runs longer."""
        try:
            outputs = [process.communicate(timeout=timeout) for process in self.processes]
            return [(p.returncode, *x) for p, x in zip(self.processes, outputs, strict=True)]
        finally:
            for process in self.processes:
                process.kill()


def start(folder, devices, *command):
    """Start `tests.process` on that many devices; compiled programs are kept in the folder."""
    environment = os.environ | {
        "XDG_CACHE_HOME": str(folder / "compiled"),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.process", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Runs:
    """A model, a data set and its cache, and training runs by several processes and by one."""

    def __init__(self, folder, keys, processes=4):
        """Make them; `keys` are lines of the recipe besides RECIPE's."""
        self.folder, self._recipe, self.processes = folder, RECIPE + keys, processes
        write_model(folder / "model")
        write_data(folder)
        assert main(["cache", str(self.recipe("cached"))]) == 0

    def recipe(self, run):
        file = self.folder / f"{run}.toml"
        file.write_text(self._recipe.format(folder=self.folder, out=self.folder / run, clip=CLIP))
        return file

    def train(self, run, how="train"):
        """Train by several processes; return exit code, output and errors of each."""
        command = how, str(self.recipe(run))
        return Processes(self.folder, *command, number=self.processes).wait()

    def train_alone(self, run):
        """Train by one process; return the names of the programs that it compiled."""
        process = start(self.folder, 8, "train", str(self.recipe(run)))
        out, err = process.communicate()
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])["compiled"]

    def copy_of_step_2(self, run, of):
        """Make a run that is where another one was after step 2."""
        shutil.copytree(self.folder / of, self.folder / run)
        shutil.rmtree(self.folder / run / "checkpoints" / "3")
        (self.folder / run / "manifests" / "3.json").unlink()

    def values(self, run, name):
        """Return what a run reported under a name, step by step."""
        text = (self.folder / run / "metrics.jsonl").read_text()
        return [line[name] for line in map(json.loads, text.splitlines()) if name in line]

    def saved(self, run, step):
        """Return every array of a checkpoint by name, read by this process alone."""
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
        """Check that every array of a checkpoint equals another run's to 1e-5."""
        ours, theirs = (self.saved(name, step) for name in (run, of))
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            if np.any(theirs[name]):
                assert relative(array, theirs[name]) < 1e-5, name
            else:
                assert not np.any(array), name

    def resumed(self, run):
        """Yield the shards of the state that the processes of a run restored: name, index, data."""
        for file in sorted((self.folder / run).glob("resumed-*.pickle")):
            yield from pickle.loads(file.read_bytes())
