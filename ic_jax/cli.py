"""Command lines: sub-commands in a table, one-line errors for people, exit codes for scripts."""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ic_jax import multihost
from ic_jax.weights.tensors import WeightsError

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


@dataclass(frozen=True)
class Command:
    """One sub-command: its line in `--help`, its arguments, and its work.

    `run` takes the parsed arguments and imports what it needs itself, so that one command's
    `--help` does not wait for another's imports.
    """

    name: str
    help: str  # one sentence
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Any]
    description: str = ""  # longer than `help`, for the command's own --help


def main(
    prog: str,
    description: str,
    commands: Sequence[Command],
    arguments: Sequence[str] | None = None,
    *,
    default: str | None = None,
) -> int:
    """Run the sub-command that `arguments` (by default the process's) name; return its exit code.

    `default` names the command that is meant where the first argument is no command's name.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    names = [command.name for command in commands]
    if default and (not arguments or arguments[0] not in (*names, "-h", "--help")):
        arguments.insert(0, default)
    parser = argparse.ArgumentParser(prog=prog, description=description)
    table = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for command in commands:
        sub = table.add_parser(
            command.name,
            help=command.help + (" (the default)" if command.name == default else ""),
            description=command.description or command.help,
            formatter_class=_Help,
        )
        command.add_arguments(sub)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(command=command)
    args = parser.parse_args(arguments)
    return run(lambda: args.command.run(args), debug=args.debug)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says the defaults that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, []) or action.help is None
        return action.help if silent else super()._get_help_string(action)


def add_overwrite(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--overwrite`; `what` says what it replaces."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def add_set(parser: argparse.ArgumentParser, example: str) -> None:
    """Add `--set KEY=VALUE`, repeatable; `example` is shown in the help."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"such as {example}"
    )


def add_compile_cache(parser: argparse.ArgumentParser) -> None:
    """Add `--no-compile-cache`; `ic_jax.compilation_cache.enable` is for where it is not given."""
    parser.add_argument(
        "--no-compile-cache", action="store_true", help="compile everything anew, keep nothing"
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
        return multihost.exit_together(141, "nobody reads its output")
    except BaseException as error:
        code, message = _exit_code(error), _message(error)
        if gone := not _out_of_memory(error) and multihost.failed_process(error):
            code, message = multihost.HostsError.exit_code, gone
        if code is None and not multihost.is_multiprocess():
            raise
        if debug or code is None:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return multihost.exit_together(code or 1, message, agreed=getattr(error, "agreed", False))
    return multihost.exit_together(0)


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
            "device with more (docs/drawing.md has a table of what each part needs)"
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
