"""Interrupted conversions, full disks and what is in the way: nothing is lost or left half made."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convert.commands import main
from ic_jax.weights import safetensors_io as ours
from ic_jax.weights.model_folder import ModelFolder, create
from ic_jax.weights.tensors import WeightsError
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent


def start(out, trap):
    """The conversion in a process of its own, with a trap set in it."""
    script = (
        "import os, signal, sys\n"
        "from convert.commands import main\n"
        "from ic_jax import files\n"
        "from ic_jax.weights import model_folder, safetensors_io\n"
        f"{trap}\n"
        f"sys.exit(main(['from-torch', '--flux', '{TINY / 'flux'}', '--out', '{out}']))"
    )
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)


KILL = "lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)"
MOMENTS = {
    "the first file": f"model_folder.ModelWriter.add_config = {KILL}",
    "some tensors written": f"model_folder.ModelWriter.add_file = {KILL}",
    "before the manifest": f"model_folder.vars = {KILL}",
    "before the rename": f"files._replace = {KILL}",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_conversion_leaves_nothing_that_is_taken_for_a_model(tmp_path, moment):
    out = tmp_path / "MODEL"
    trap = MOMENTS[moment]
    if moment == "some tensors written":
        trap = (
            "write = safetensors_io.write_tensors\n"
            "def trap(*a):\n"
            "    result = write(*a)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "safetensors_io.write_tensors = trap"
        )
    assert start(out, trap).returncode == -signal.SIGKILL
    assert not out.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["MODEL.partial"]
    if moment != "before the rename":
        with pytest.raises(WeightsError, match="not an ic_jax model"):
            ModelFolder.open(tmp_path / "MODEL.partial")
    assert main(["from-torch", "--flux", str(TINY / "flux"), "--out", str(out)]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["MODEL"]
    ModelFolder.open(out).verify()


def test_ctrl_c_and_sigterm_remove_what_was_written(tmp_path, tmp_path_factory):
    reached = tmp_path_factory.mktemp("reached") / "tensors"
    script = (  # as `python -m convert`, but it stays at its first tensors until the signal
        "import pathlib, runpy, sys, time\n"
        "from ic_jax.weights import safetensors_io\n"
        "def wait(*a):\n"
        f"    pathlib.Path('{reached}').touch()\n"
        "    time.sleep(60)\n"
        "safetensors_io.write_tensors = wait\n"
        f"sys.argv[1:] = ['from-torch', '--flux', '{TINY / 'flux'}', '--out', "
        f"'{tmp_path / 'MODEL'}']\n"
        "runpy.run_module('convert', run_name='__main__')"
    )
    written = tmp_path / "MODEL.partial" / "transformer" / "config.json"
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and not reached.exists():
            time.sleep(0.005)
        assert written.exists()
        reached.unlink()
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == status
        assert "Traceback" not in err
        assert not [*tmp_path.iterdir()]


def test_a_full_disk(tmp_path, run, monkeypatch):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    process = start(tmp_path / "MODEL", limit)
    assert process.returncode == 74
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in process.stderr
    assert not [*tmp_path.iterdir()]

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1000))
    status, error = run("from-torch", "--flux", TINY / "flux")
    assert (status, "MB needed, 0.0 MB free; make room" in error) == (74, True)

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.undo()
    monkeypatch.setattr(ours, "sync", full)
    assert run("from-torch", "--flux", TINY / "flux")[0] == 74


def test_what_is_in_the_way_stays(tmp_path, capsys):
    out = tmp_path / "MODEL"
    command = ["from-torch", "--flux", str(TINY / "flux"), "--out", str(out)]
    out.write_text("a file")
    assert main(command) == 2
    assert out.read_text() == "a file"
    out.unlink()
    (out / "transformer").mkdir(parents=True)
    assert main([*command, "--overwrite"]) == 2  # perhaps published weights
    (out / "transformer").rmdir()
    assert main(command) == 0  # an empty folder is no loss
    (out / "transformer" / "model.safetensors").write_bytes(b"mine")
    assert main(command) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert (out / "transformer" / "model.safetensors").read_bytes() == b"mine"
    assert main([*command, "--overwrite"]) == 0
    ModelFolder.open(out).verify()
    (out / "thesis.txt").write_text("mine")
    assert main([*command, "--overwrite"]) == 2
    assert main(["to-torch", str(out), "--out", str(out), "--overwrite"]) == 2
    assert (out / "thesis.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["MODEL"]


def test_a_failed_overwrite_keeps_the_old_model(tmp_path):
    out = tmp_path / "MODEL"
    with create(out) as writer:
        writer.add_config("scheduler", {})

    def fail():
        with create(out, overwrite=True) as writer:
            writer.add_config("scheduler", {"shift": 2.0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert ModelFolder.open(out).json("scheduler") == {}


def test_two_conversions_to_one_place(tmp_path):
    with create(tmp_path / "MODEL"), pytest.raises(FileExistsError, match="another process"):
        create(tmp_path / "MODEL").__enter__()
    ModelFolder.open(tmp_path / "MODEL")
