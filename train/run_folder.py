"""A RUN folder: one owner at a time, the recipe it was started with, and how it is stopped."""

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
    """Stopped on request, after saving; the command exits with 75 and resumes when run again."""

    exit_code = 75
    agreed = True  # by all hosts, at the same step


@contextmanager
def owned(run: Path) -> Iterator[None]:
    """Hold the folder; of several hosts the first does, for all.

    Raises:
        FileExistsError: another process trains in it.
        FileNotFoundError: this host does not see what the first one wrote.
    """
    if not multihost.is_first():
        multihost.barrier("run folder")
        if not (run / "lock").exists():
            raise FileNotFoundError(
                f"{run}: {multihost.process_name(0)} has made it and "
                f"{multihost.process_name(multihost.process_index())} does not "
                "see it; name an out on a file system that all processes share"
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
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> "StopRequest":
        kinds = (signal.SIGTERM, signal.SIGINT)
        self._before = {kind: signal.signal(kind, self._ask) for kind in kinds}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _ask(self, number: int, _frame: object) -> None:
        self.wanted = True
        signal.signal(number, signal.SIG_DFL)


class StopAgreement:
    """Whether to stop, asked once a step: of several hosts all hear the same at the same step."""

    def __init__(self, stop: StopRequest, mesh: Mesh):
        self._stop = stop
        self._one_each = NamedSharding(mesh, P(mesh.axis_names))
        self._any = jax.jit(_any, out_shardings=NamedSharding(mesh, P()))
        self._asked: deque[jax.Array] = deque()

    def wanted(self) -> bool:
        """Several hosts hear what was asked two steps before: that step is done, so nobody waits
        for the devices because of this."""
        if not multihost.is_multiprocess():
            return self._stop.wanted
        own = np.full(self._one_each.mesh.size, self._stop.wanted)
        self._asked.append(self._any(to_global_array(own, self._one_each, np.int32)))
        return len(self._asked) > 2 and bool(self._asked.popleft())


def _any(asked: Int[Array, "n"]) -> Int[Array, ""]:
    return asked.max()
