"""RUN folder: its lock, and the request to stop a run."""

import os
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from ic_jax import multihost
from ic_jax.files import locked
from ic_jax.sharding import to_global_array
from ic_jax.signals import answered
from ic_jax.text_files import lines_of, read_text
from ic_jax.untrusted_files import parse_json

STOPPING = (signal.SIGTERM, signal.SIGINT)
MAX_METRICS = 2**30  # bytes of metrics.jsonl


class Stopped(Exception):
    """Raised on a request to stop, after saving; the command exits with code 75."""

    exit_code = 75
    asked_for = True
    agreed = True  # by all processes, at the same step


@contextmanager
def owned(run: Path) -> Iterator[None]:
    """Lock the folder; process 0 does so for all processes of the run.

    Raises:
        FileExistsError: another run uses the folder.
        FileNotFoundError: this process does not see the folder that process 0 created.
    """
    if not multihost.is_first():
        multihost.barrier("run folder")
        if not (run / "lock").exists():
            raise FileNotFoundError(
                f"{run}: {multihost.process_name(0)} created this folder, and "
                f"{multihost.process_name(multihost.process_index())} does not "
                "see it; set out to a folder on a file system that all processes share"
            )
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    (run / "lock").touch()
    busy = f"{run}: another process is training in it; wait for it, or name another out"
    with locked(run / "lock", busy):
        multihost.barrier("run folder")
        yield


class StopRequest:
    """Request to stop: set by the first SIGTERM or SIGINT; a second one kills the process."""

    def __init__(self) -> None:
        self.wanted = self._heard = False

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._ask) for number in STOPPING}
        self._ear = answered(self._answer)
        self._ear.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._ear.__exit__(None, None, None)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        self.wanted = True
        signal.signal(number, signal.SIG_DFL)

    def _answer(self, number: int) -> None:
        """Say a word at once, also while a step compiles, which the handler waits for."""
        if number not in STOPPING:
            return
        if self._heard:
            os._exit(128 + number)
        self._heard = True
        # The main thread may be within a print, so this does not use the same buffer.
        os.write(2, b"\nstopping after this step, to save; a second time ends the run at once\n")


class StopAgreement:
    """Agreement of all processes to stop after the same step, if any of them was asked to.

    The training step's own program computes it. A program of its own would go on after a step that
    lost a process, and meet other processes that are still within that step.
    """

    def __init__(self, stop: StopRequest, mesh: Mesh):
        self._stop = stop
        self._one_per_device = NamedSharding(mesh, P(mesh.axis_names))
        self._answers: deque[Int[Array, ""]] = deque()
        self._nobody_asked = self._flags(False)

    def asked(self) -> Int[Array, "d"]:
        """Return whether this process was asked, on each of its devices: an input of the step."""
        if not multihost.is_multiprocess():
            return self._nobody_asked  # and no copy to the devices at every step
        return self._flags(self._stop.wanted)

    def wanted(self, answer: Int[Array, ""]) -> bool:
        """Return whether to stop; call it once per step, with what the step made of `asked()`.

        Several processes learn of requests two steps later: those devices have finished that
        step, so that asking does not wait for them.
        """
        if not multihost.is_multiprocess():
            return self._stop.wanted
        self._answers.append(answer)
        return len(self._answers) > 2 and bool(self._answers.popleft())

    def _flags(self, asked: bool) -> Int[Array, "d"]:
        flags = np.full(self._one_per_device.mesh.size, asked)
        return to_global_array(flags, self._one_per_device, np.int32)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of RUN/metrics.jsonl; one that a kill cut short is left out."""
    file, lines = run / "metrics.jsonl", []
    text = read_text(file, errors="replace", limit=MAX_METRICS) if file.exists() else ""
    for line in lines_of(text):
        try:
            values = parse_json(line, str(file))
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            lines.append(values)
    return lines
