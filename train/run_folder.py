"""A RUN folder: one owner at a time, the recipe it was started with, and how it is stopped."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ic_jax.folders import locked


class Stopped(Exception):
    """Stopped on request, after saving; the command exits with 75 and resumes when run again."""

    exit_code = 75


@contextmanager
def owned(run: Path) -> Iterator[None]:
    """Hold the folder; FileExistsError if another process trains in it."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "lock").touch()
    busy = f"{run}: another process is training in it; wait for it, or name another out"
    with locked(run / "lock", busy):
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


def write_json(file: Path, values: Any) -> None:
    """Whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(values, indent=2) + "\n")
    part.replace(file)
