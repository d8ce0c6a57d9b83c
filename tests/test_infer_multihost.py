"""`python -m infer` on a prompts file: several processes, a mesh of all, killed and restarted."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ic_jax.weights.loading import folder_configs
from ic_jax.weights.lora.delta import LoraDelta
from ic_jax.weights.lora.targets import targets_of
from ic_jax.weights.lora.writing import write_lora
from ic_jax.weights.model_folder import ModelFolder
from tests.conftest import GOLDENS

ROOT = Path(__file__).parent.parent
MODEL = GOLDENS / "toy_model"
ARGUMENTS = [
    f"--model={MODEL}",
    f"--subject={GOLDENS / 'tiny_instantcharacter' / 'reference.png'}",
    *("--height=32", "--width=32", "--steps=1", "--max-sequence-length=16", "--dtype=float32"),
    *("--seed", "1", "2", "3"),
]
NAMES = sorted(f"{p}-seed{s}.png" for p in ("a-girl-efa86c58", "a-boy-a078fa22") for s in (1, 2, 3))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Return a function that starts the command on two devices; programs are compiled once."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "prompts.txt").write_text("a girl\na boy\n")
    lora = folder / "lora.safetensors"
    write_lora(lora, changes(), np.dtype(np.float32))
    devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    environment = os.environ | devices | {"XDG_CACHE_HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def begin(*arguments, how=("infer",)):
        run = [sys.executable, "-m", *how, *ARGUMENTS, f"--prompts-file={folder / 'prompts.txt'}"]
        run.append(f"--lora={lora}")
        return subprocess.Popen(
            [*run, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return begin


def changes():
    """Return a LoRA of every linear map of FLUX and CLIP, which all processes hold alike."""
    rng = np.random.default_rng(0)
    targets = targets_of(folder_configs(ModelFolder.open(MODEL)))
    return {
        (component, module): LoraDelta(
            rng.standard_normal((2, inputs), np.float32) / inputs**0.5,
            rng.standard_normal((outputs, 2), np.float32) / 4,
            1.0,
        )
        for component in ("transformer", "clip")
        for module, (inputs, outputs) in targets[component].items()
    }


def drawn(text):
    return re.findall(r"^drew .*?([^/]+\.png): ", text, re.MULTILINE)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """The pictures of one process on one device."""
    out = tmp_path_factory.mktemp("alone")
    text, error = start("--out", out).communicate()
    assert error == ""
    assert sorted(drawn(text)) == NAMES
    return out


def check(out, alone):
    assert sorted(p.name for p in out.iterdir()) == NAMES
    for name in NAMES:
        ours, expected = (np.asarray(Image.open(f / name), np.int32) for f in (out, alone))
        assert np.abs(ours - expected).max() <= 1  # 1e-5 may be on either side of a half
        assert (ours != expected).mean() < 0.01


@pytest.mark.slow  # starts the command four times
def test_a_killed_run_goes_on(start, alone, tmp_path):
    process = start("--out", tmp_path)
    while not process.stdout.readline().startswith("drew"):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")}
    (tmp_path / f".{NAMES[-1]}.123.part").write_text("left over")
    text, error = start("--out", tmp_path).communicate()
    assert error == ""
    assert f"{len(before)} of 6 pictures already exist" in text
    assert len(drawn(text)) == 6 - len(before)
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == NAMES
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()
    again, error = start("--out", tmp_path).communicate()
    assert ("6 of 6 pictures already exist" in again, "loaded" in again) == (True, False)
    _, error = start("--out", tmp_path, "--guidance-scale=2").communicate()
    assert re.search(r"\.png and 5 more exist but were made with other settings", error)


@pytest.mark.parametrize(
    ("processes", "mesh", "shares"),
    [
        # Two or four processes on this machine's loopback. Rare: four do what two do.
        pytest.param(2, "data=2", [3, 3], marks=pytest.mark.rare),
        pytest.param(2, "data=2,tensor=2", [6, 0], marks=pytest.mark.rare),
        pytest.param(4, "data=2,fsdp=2,tensor=2", [6, 0, 0, 0], marks=pytest.mark.slow),
    ],
)
def test_processes_draw_each_picture_once(start, alone, tmp_path, processes, mesh, shares):
    """Each its share of the pictures on a mesh of its own devices, or all on one mesh together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--mesh", mesh, "--num-processes", processes, "--coordinator", f"localhost:{port}"]
    how = ("infer",) if processes == 2 else ("tests.process", "infer")  # of four, one compiles
    started = [
        start("--out", tmp_path, *flags, "--process-id", i, how=how) for i in range(processes)
    ]
    each = [drawn(process.communicate()[0]) for process in started]
    assert sorted(itertools.chain(*each)) == NAMES
    assert [len(names) for names in each] == shares
    check(tmp_path, alone)
