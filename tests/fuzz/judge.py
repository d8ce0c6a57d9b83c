"""Verdict on a reader and a file: it reads, or it raises one of the project's one-line errors."""

import io
import resource
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from ic_jax.terminal import printable_line
from tests.fuzz.reader import ROOT, Reader

SECONDS = 5.0  # of processor time that a reader may take
PACKAGES = ("ic_jax", "convert", "train", "infer")
CEILING = 2**32  # bytes of address space beyond those in use; what takes more is ended


class Finding(Exception):
    """Breach of the property; `place` tells findings of one cause from others."""

    def __init__(self, what: str, place: str):
        super().__init__(f"{what} at {place}")
        self.place = f"{what.split(':')[0]} at {place}"


class _Late(BaseException):
    """Raised where a reader is still at work after `SECONDS`."""


def judge(reader: Reader, folder: Path, name: str, data: bytes) -> str:
    """Read `folder` with `data` as the file `name`; return "read" or "refused".

    Raises:
        Finding: another error, one of several lines, or too much memory or time.
    """
    file = folder / name
    before = file.read_bytes()
    file.write_bytes(data)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), _limits():
            start = _reset_peak()
            outcome = _read(reader, folder)
            taken = (_peak() - start) / 2**20
    finally:
        file.write_bytes(before)
    if taken > reader.megabytes:
        raise Finding(f"memory: {taken:.0f} MB", Path(name).suffix or name)
    return outcome


def _read(reader: Reader, folder: Path) -> str:
    try:
        reader.read(folder)
    except _Late as late:
        raise Finding("time", _place(late)) from late
    except MemoryError as error:
        raise Finding("memory: refused", _place(error)) from error
    except Exception as error:
        ours = isinstance(error, ValueError | OSError) and (
            _is_ours(error) or (isinstance(error, OSError) and error.filename)
        )
        if not ours:
            raise Finding(f"{type(error).__name__}: {error!s:.200}", _place(error)) from error
        if not printable_line(error):
            raise Finding("message: none", _place(error)) from error
        return "refused"
    return "read"


def _is_ours(error: BaseException) -> bool:
    """Return whether the project's own code raised the error."""
    return _ours(traceback.extract_tb(error.__traceback__)[-1].filename)


def _ours(file: str) -> bool:
    return any(Path(file).is_relative_to(ROOT / package) for package in PACKAGES)


def _place(error: BaseException) -> str:
    frames = [x for x in traceback.extract_tb(error.__traceback__) if _ours(x.filename)]
    if not frames:
        return "outside of the project"
    return f"{Path(frames[-1].filename).relative_to(ROOT)} in {frames[-1].name}"


@contextmanager
def _limits() -> Iterator[None]:
    """Raise `_Late` after `SECONDS`, and MemoryError beyond `CEILING`."""

    def late(*_: Any) -> None:
        raise _Late

    before, limits = signal.signal(signal.SIGPROF, late), resource.getrlimit(resource.RLIMIT_AS)
    ceiling = _status("VmSize") + CEILING
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGPROF, before)


def _reset_peak() -> int:
    """Begin to measure the peak of this process's memory; return what it has, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)
