"""Options of command lines: a strict parser, types of values, and options that commands share."""

import argparse
import math
from pathlib import Path
from typing import Any, NoReturn

from ic_jax.from_dict import nearest

Arguments = argparse.ArgumentParser | argparse._ArgumentGroup


class Parser(argparse.ArgumentParser):
    """Parser that reports a mistake in one line and accepts no abbreviated or repeated option."""

    def __init__(self, **settings: Any):
        # With abbreviations, a new flag could make a command line ambiguous that worked before.
        super().__init__(allow_abbrev=False, **settings)
        self.given: set[str] = set()  # options of the command line that is being parsed
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what no option understands; the nearest option is named."""
        self.given = set()
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [text for text in self._option_string_actions if text.startswith("--")]
            option = unknown[0].partition("=")[0]
            hint = nearest(option, options, listed=False) if option.startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that adds the default to the help of an option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        silent = action.default is None or isinstance(action.default, bool | list)
        return text if silent or "(default: " in text else super()._get_help_string(action)


class _StoreOnce(argparse._StoreAction):
    """Action of an option with one value; a second one would replace the first silently."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if option_string is not None:
            if self.dest in parser.given:
                together = " with all its values" if self.nargs else ""
                parser.error(f"{option_string} is given twice; give it once{together}")
            parser.given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _Renamed(argparse.Action):
    """Action that refuses a flag of earlier versions."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser.error(f"{self.option_strings[0]} is now {self.metavar}")


def path(text: str) -> Path:
    """Return the path that an argument names, `~` expanded as no shell does in `--out=~/x`.

    It is the `type` of every option that takes a path.
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text}: there is no such user") from None


def count(text: str) -> int:
    """Return the positive number that an argument holds; the `type` of an option."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """Return the number above 0 that an argument holds; the `type` of an option."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def add_renamed(parser: Arguments, **names: str) -> None:
    """Refuse flags of earlier versions, each in one line that says what to write instead.

    The flags are given as argparse's destinations: `host="--process-id"` is for `--host`.
    """
    for old, new in names.items():
        parser.add_argument(
            "--" + old.replace("_", "-"),
            action=_Renamed,
            nargs="?",
            metavar=new,
            dest=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def add_overwrite(parser: Arguments, what: str) -> None:
    """Add `--overwrite`; `what` says what it replaces."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def add_set(parser: argparse.ArgumentParser, example: str) -> None:
    """Add `--set KEY=VALUE`, repeatable; `example` is shown in the help."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change a setting, such as {example}; repeat for several",
    )


def add_compile_cache(parser: Arguments) -> None:
    """Add `--no-compile-cache`, for a command that keeps its compiled programs by default."""
    parser.add_argument(
        "--no-compile-cache",
        action="store_true",
        help="compile everything anew; by default compiled programs are kept in ~/.cache/ic_jax",
    )


def add_multiprocess(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that runs on several processes."""
    group = parser.add_argument_group(
        "several processes",
        "every process runs the same command; a TPU pod, SLURM, Open MPI and Kubernetes need no "
        "flags (docs/multihost.md)",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="an open port of process 0")
    group.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process-id", type=int, metavar="I", help="index of this process, from 0")
    add_renamed(group, hosts="--num-processes", host="--process-id")
