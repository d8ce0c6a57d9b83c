"""Commands in processes that are forked from a server which has imported everything.

The server of `multiprocessing` forks before JAX has devices or threads. A command is then a process
like any other: SIGKILL ends it at once, and so do a full disk or a limit. Only the seconds that its
imports would take are saved.
"""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

from ic_jax import cli

CONVERT = ("convert.from_torch", "convert.to_torch", "convert.tokenizers")
EVERYTHING = (
    *(*CONVERT, "convert.inspect_model", "transformers", "infer.generate", "train.loop"),
    *("train.export", "train.cache_command", "train.data.prepare", "train.data.verify"),
)
LIMIT = 1800.0  # seconds after which a command hangs, on a very busy machine
CONTEXT = multiprocessing.get_context("forkserver")
POLL = 0.001  # seconds


class Ended(NamedTuple):
    """Exit code of a command, negative for a signal, and all that it said."""

    code: int
    said: str


class Running(NamedTuple):
    """A command that runs."""

    process: multiprocessing.process.BaseProcess
    log: Path
    begin: float

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; return False if the process ends before it holds."""
        while not condition():
            if time.monotonic() > self.begin + LIMIT:
                self.process.kill()
            if not self.process.is_alive():
                return False
            time.sleep(POLL)
        return True

    def kill_after(self, seconds: float) -> bool:
        """Kill the process in so many seconds; return False if it ends before."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def elapsed(self) -> float:
        """Return the seconds since the command began."""
        return time.monotonic() - self.begin

    def end(self) -> Ended:
        """Wait for the end, which the command must come to by itself."""
        self.process.join(LIMIT)
        hangs = self.process.is_alive()
        self.process.kill()
        self.process.join()
        said = self.log.read_text(errors="replace")
        assert not hangs, f"hangs for {LIMIT:.0f} s:\n{said}"
        return Ended(self.process.exitcode or 0, said)


def start_server(modules: Sequence[str], cache: Path) -> None:
    """Start the server, with JAX's compiled programs kept in a folder."""
    CONTEXT.set_forkserver_preload([__name__, *modules])
    before = dict(os.environ)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "HF_HUB_OFFLINE": "1",
    }
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def started(
    main: str, arguments: Sequence[str], log: Path, file_limit: int | None = None
) -> Iterator[Running]:
    """Start a command, and have it ended when the block is left.

    Args:
        main: module whose `main` takes the arguments.
        log: file for what it says; made by the command when it begins.
        file_limit: most bytes of a file that it may write.
    """
    log.unlink(missing_ok=True)
    process = CONTEXT.Process(target=_command, args=(main, list(arguments), str(log), file_limit))
    process.start()
    try:
        while not log.exists() and process.is_alive():
            time.sleep(POLL)
        yield Running(process, log, time.monotonic())
    finally:
        process.kill()
        process.join()


def _command(main: str, arguments: list[str], log: str, file_limit: int | None) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    cli.leave(import_module(main).main(arguments))
