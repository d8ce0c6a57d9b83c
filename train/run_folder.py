"""RUN folder: its lock, and the request to stop a run."""

import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from ic_jax import multihost
from ic_jax.files import locked
from ic_jax.sharding import to_global_array


class Stopped(Exception):
    """Raised on a request to stop, after saving; the command exits with code 75."""

    exit_code = 75
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
        self.wanted = False

    def __enter__(self) -> "StopRequest":
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        self.wanted = True
        signal.signal(number, signal.SIG_DFL)


class StopAgreement:
    """Agreement of all processes to stop after the same step, if any of them was asked to."""

    def __init__(self, stop: StopRequest, mesh: Mesh):
        self._stop = stop
        self._one_per_device = NamedSharding(mesh, P(mesh.axis_names))
        self._any = jax.jit(_any, out_shardings=NamedSharding(mesh, P()))
        self._asked: deque[jax.Array] = deque()

    def wanted(self) -> bool:
        """Return whether to stop; call it once per step in every process.

        Several processes learn of requests two steps later: those devices have finished that
        step, so that asking does not wait for them.
        """
        if not multihost.is_multiprocess():
            return self._stop.wanted
        flags = np.full(self._one_per_device.mesh.size, self._stop.wanted)
        self._asked.append(self._any(to_global_array(flags, self._one_per_device, np.int32)))
        return len(self._asked) > 2 and bool(self._asked.popleft())


def _any(asked: Int[Array, "n"]) -> Int[Array, ""]:
    return asked.max()
