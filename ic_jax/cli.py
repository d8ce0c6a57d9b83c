"""How the commands end: one line of error for a person, and an exit code for a script."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax

from ic_jax import hosts
from ic_jax.weights import WeightsError

# The first kind that fits an exception decides; the rest are defects and show their traceback.
EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (WeightsError, 3),
    (FloatingPointError, 5),
    (ValueError, 2),
    (FileNotFoundError, 2),
    (FileExistsError, 2),
    (NotADirectoryError, 2),
    (OSError, 74),
    (KeyboardInterrupt, 130),
)


def run(command: Callable[[], Any], *, debug: bool = False) -> int:
    """Run a command; returns its exit code.

    0 done; 2 bad usage or input; 3 bad weights; 4 bad data set; 5 not a finite number; 69 a host
    is missing; 74 input or output failed; 130 interrupted; 141 the output's reader has gone; 1 out
    of memory. `debug` shows tracebacks. One of several hosts ends together with the others.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warning  # type: ignore[assignment]
            command()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone: nothing to tell anyone
        _drop_output()
        return hosts.end(141, "nobody reads its output")
    except BaseException as error:
        code, message = _exit_code(error), _message(error)
        if gone := not _out_of_memory(error) and hosts.lost(error):
            code, message = hosts.HostsError.exit_code, gone
        if code is None and not hosts.several():
            raise
        if debug or code is None:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return hosts.end(code or 1, message, agreed=getattr(error, "agreed", False))
    return hosts.end(0)


def say(text: str) -> None:
    """Print a line for whoever reads on; work whose product is a file goes on without them."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _drop_output()


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(error: BaseException) -> int | None:
    if _out_of_memory(error):
        return 1
    own = getattr(error, "exit_code", None)  # an application's kind, unknown to the library
    return own or next((code for kind, code in EXIT_CODES if isinstance(error, kind)), None)


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if _out_of_memory(error):
        return (
            "out of memory; make pictures or batches smaller, compute in bfloat16, or take a "
            "device with more (the README has a table of what each part needs)"
        )
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _one_line_warning(message: Warning | str, *_: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
