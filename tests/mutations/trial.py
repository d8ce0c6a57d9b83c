"""A scratch copy of the tree, and trials of tests in it, each in a forked process.

The parent imports the foreign libraries once and none of the project's modules, so that a trial
starts in the time of a fork and sees the copy alone.
"""

import compileall
import gc
import importlib
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.mutations.catalogue import ROOT

# Attributes, because diffusers and transformers import what is asked of them.
FOREIGN = {
    "jax.numpy": (),
    "flax.nnx": (),
    "optax": (),
    "jaxtyping": (),
    "beartype": (),
    "grain": (),
    "tensorflow_datasets": (),
    "array_record.python.array_record_module": (),
    "PIL.Image": (),
    "tokenizers": (),
    "safetensors.torch": (),
    "diffusers": ("AutoencoderKL", "FluxTransformer2DModel", "FluxPipeline"),
    "transformers": (
        *("T5EncoderModel", "CLIPTextModel", "SiglipVisionModel", "Dinov2Model", "Adafactor"),
    ),
}
LIMIT = 600  # seconds of one trial, of a busy machine


def import_foreign() -> None:
    """Import what the tests need of other libraries."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    for name, attributes in FOREIGN.items():
        module = importlib.import_module(name)
        for attribute in attributes:
            getattr(module, attribute)
    # Numbers are to show an error, not shapes, whose checks would take half of the time.
    sys.modules["jaxtyping"].install_import_hook = lambda *_: None
    gc.freeze()  # pytest collects garbage five times, of all that was imported
    # No thread of XLA runs before the first computation.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")


def copy_tree(to: Path) -> None:
    """Copy the files that git knows or would add, and share the cache of compiled programs."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    (ROOT / ".cache").mkdir(exist_ok=True)
    (to / ".cache").symlink_to(ROOT / ".cache")
    # By hash: two versions of a file within a second and of one size are not told apart by time.
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(to, quiet=2, invalidation_mode=mode)


@contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """Give a file another text for the duration of a `with` block."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def trial(scratch: Path, tests: Sequence[str]) -> dict[str, Any]:
    """Run tests in the copy; return the outcome, the failed tests and the seconds of a core.

    Outcomes: "passed", "failed", "hung" (longer than LIMIT) or "broken" (pytest cannot run them).
    """
    report, log = scratch / ".trial.json", scratch / ".trial.log"
    report.unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _child(scratch, tests, report, log)
    try:
        status, seconds = _wait(pid, time.monotonic() + LIMIT)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    failed = json.loads(report.read_text()) if report.exists() else []
    outcome = {None: "hung", 0: "passed", 1: "failed"}.get(status, "broken")
    return {"outcome": outcome, "failed": failed, "seconds": seconds}


def _wait(pid: int, end: float) -> tuple[int | None, float]:
    """Return the exit status of a process, None if it was killed at `end`, and its core seconds."""
    killed = False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            code = None if killed else os.waitstatus_to_exitcode(status)
            return code, usage.ru_utime + usage.ru_stime
        if not killed and time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.05)


class _Failures:
    """Plugin of pytest that keeps the ids of tests that fail."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.ids:
            self.ids.append(report.nodeid)


def _child(scratch: Path, tests: Sequence[str], report: Path, log: Path) -> None:
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(scratch)
        sys.dont_write_bytecode = True
        sys.path[:] = [str(scratch), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        failures = _Failures()
        options = [
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-p",
            "no:anyio",
            "-o",
            "addopts=",
        ]
        code = int(pytest.main([*options, *tests], plugins=[failures]))
        report.write_text(json.dumps(failures.ids))
    finally:
        os._exit(code)
