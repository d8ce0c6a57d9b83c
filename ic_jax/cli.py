"""Command lines: sub-commands in a table, one-line errors for people, exit codes for scripts."""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import jax

from ic_jax import compilation_cache, multihost, progress
from ic_jax.cli_options import Arguments as Arguments
from ic_jax.cli_options import Help
from ic_jax.cli_options import Parser as Parser
from ic_jax.cli_options import add_compile_cache as add_compile_cache
from ic_jax.cli_options import add_multiprocess as add_multiprocess
from ic_jax.cli_options import add_overwrite as add_overwrite
from ic_jax.cli_options import add_renamed as add_renamed
from ic_jax.cli_options import add_set as add_set
from ic_jax.cli_options import count as count
from ic_jax.cli_options import path as path
from ic_jax.cli_options import positive as positive
from ic_jax.signals import INTERRUPTED, interrupts_arrive
from ic_jax.terminal import drop_output, print_any_text, printable_line
from ic_jax.terminal import say as say
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
    (KeyboardInterrupt, INTERRUPTED),
)

# Packages that a command may lack, and the extra of pyproject.toml that installs each.
EXTRAS = {
    "app": ("gradio",),
    "train": (
        *("absl", "array_record", "grain", "optax", "orbax", "tensorboard"),
        "tensorflow_datasets",
    ),
    "convert": ("sentencepiece", "transformers"),
    "matting": ("onnxruntime",),
    "mcp": ("mcp",),
    "parquet": ("pyarrow",),
    "peeps": ("resvg_py",),
    "serve": ("prometheus_client", "python_multipart", "starlette", "uvicorn"),
}


@dataclass(frozen=True)
class Command:
    """One sub-command: its line in `--help`, its arguments, and its work.

    Only the functions of the command that the user names are called. Each imports what it needs
    itself, so that no command waits for the imports of another.
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
    """Run the sub-command that `arguments` (by default `sys.argv`) name; return its exit code.

    `default` names the command that is meant where the first argument is no command's name. The
    flags of `add_compile_cache` and `add_multiprocess` take effect before the command runs.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    names = [command.name for command in commands]
    asks_help = bool(arguments) and arguments[0] in ("-h", "--help")
    if default and not asks_help and (not arguments or not _is_command(arguments[0], names)):
        arguments.insert(0, default)
    parser = Parser(prog=prog, description=description)
    table = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    parsers = {}
    for command in commands:
        sub = parsers[command.name] = table.add_parser(
            command.name,
            help=command.help + (" (the default)" if command.name == default else ""),
            description=command.description or command.help,
            formatter_class=Help,
        )
        if command.name == (default if asks_help else arguments and arguments[0]):
            command.add_arguments(sub)
            sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
            sub.set_defaults(command=command)
    if asks_help:
        parser.print_help()
        if default:
            print(f"\n\nWithout COMMAND, `{default}` is meant:\n")
            parsers[default].print_help()
        return 0
    if arguments and arguments[0] not in names and not arguments[0].startswith("-"):
        parser.error(f"there is no command {arguments[0]!r}; give one of {', '.join(names)}")
    args = parser.parse_args(arguments)
    with interrupts_arrive():
        return run(lambda: _start(args), debug=args.debug)


def start(module: str) -> int:
    """Import a module of commands and return what its `main` returns.

    Where the module needs a package of an extra that is missing, one line says so.
    """
    modules: list[Any] = []
    code = run(lambda: modules.append(import_module(module)))
    return code or modules[0].main()


def leave(code: int) -> NoReturn:
    """End the process with an exit code of `main`."""
    sys.stdout.flush()
    sys.stderr.flush()
    # A compilation cannot be cancelled, and a normal exit during one crashes: exit at once.
    if code == INTERRUPTED or compilation_cache.is_ahead():
        os._exit(code)
    sys.exit(code)


def _is_command(argument: str, names: Sequence[str]) -> bool:
    """Return whether an argument is a command, or can only be a misspelt one."""
    is_word = argument.replace("-", "").isalpha() and not argument.startswith("-")
    return argument in names or (is_word and not Path(argument).exists())


def _start(args: argparse.Namespace) -> None:
    progress.only_when_asked()
    if "num_processes" in args:
        multihost.initialize(args.coordinator, args.num_processes, args.process_id)
    if "no_compile_cache" in args and not args.no_compile_cache:
        compilation_cache.enable()
    args.command.run(args)


def run(command: Callable[[], Any], *, debug: bool = False) -> int:
    """Run a command and return its exit code.

    0 done; 2 bad usage or input; 3 bad weights; 4 bad data set; 5 not a finite number; 69 a process
    is missing; 74 input or output failed; 130 interrupted; 141 standard output was closed; 1 out of
    memory. `debug` shows tracebacks. With several processes, all of them end together.
    """
    print_any_text()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warnings()
            command()
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads standard output any more
        drop_output()
        return multihost.exit_together(141, "nobody reads its output")
    except BaseException as error:
        error = _missing_package(error) or _missing_device(error) or error
        code, message = _exit_code(error), _message(error)
        if gone := not _out_of_memory(error) and multihost.failed_process(error):
            code, message = multihost.ProcessError.exit_code, gone
        if code is None and not multihost.is_multiprocess():
            raise
        if debug or code is None:
            traceback.print_exc()
        kind = "" if getattr(error, "asked_for", False) else "error: "
        print(f"{kind}{printable_line(message)}", file=sys.stderr)
        return multihost.exit_together(code or 1, message, agreed=getattr(error, "agreed", False))
    return multihost.exit_together(0)


def one_line(error: BaseException) -> str | None:
    """Return the line that `run` prints of an error; None of a defect, which has a traceback."""
    return None if _exit_code(error) is None else printable_line(_message(error))


def _exit_code(error: BaseException) -> int | None:
    if _out_of_memory(error):
        return 1
    code = getattr(error, "exit_code", None)  # of an application's error class
    return code or next((c for kind, c in EXIT_CODES if isinstance(error, kind)), None)


def _missing_package(error: BaseException) -> ValueError | None:
    """Return an error that names the extra to install; None if no package of an extra is missing.

    Anything else that cannot be imported is a defect, and shows its traceback.
    """
    package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    return ValueError(f"{package} is not installed; pip install -e '.[{extra}]' in the checkout")


def _missing_device(error: BaseException) -> ValueError | None:
    """Return an error that names the platform which JAX is told to use and cannot start here."""
    platform, frames = jax.config.values["jax_platforms"], traceback.extract_tb(error.__traceback__)
    started = isinstance(error, AssertionError | RuntimeError) and frames[-1].filename
    if not platform or not started or Path(started).name != "xla_bridge.py":
        return None
    reason = str(error).split(" (set JAX_PLATFORMS=")[0].removesuffix(".")  # empty if it asserts
    return ValueError(
        f"JAX cannot start {platform!r}{': ' if reason else ''}{reason}; install JAX for it "
        "(README.md), or let it choose, without JAX_PLATFORMS or --devices"
    )


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if _out_of_memory(error):
        return (
            "out of memory; make pictures or batches smaller, compute in bfloat16, or take a "
            "device with more (docs/drawing.md has a table of what each part needs)"
        )
    if isinstance(error, OSError) and error.strerror:
        files = " -> ".join(str(file) for file in (error.filename, error.filename2) if file)
        return f"{files}: {error.strerror}" if files else error.strerror
    return str(error)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _one_line_warnings() -> Any:
    """Return a function that prints each warning once.

    What is compiled ahead of a call warns of the same as the call. Python's own filter forgets
    what it has shown whenever code changes a filter, as reading a picture does.
    """
    shown = set()

    def show(message: Warning | str, *_: Any) -> None:
        text = printable_line(compilation_cache.repair(" ".join(str(message).split())))
        if text not in shown:
            shown.add(text)
            print(f"warning: {text}", file=sys.stderr)

    return show
