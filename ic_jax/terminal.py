"""Lines for a terminal of any encoding, with texts that others may have written."""

import io
import os
import sys

MAX_LINE = 2000  # characters of an error or a warning


def printable_line(text: object) -> str:
    """Return a text on one line, of limited length, without characters that control a terminal.

    What is not printable, and what is no UTF-8 of a file's name, is written as an escape.
    """
    line = " ".join(str(text).split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if len(line) <= MAX_LINE:
        return line
    return f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"  # the remedy is at the end


def print_any_text() -> None:
    """Have standard output write escapes for what its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line; continue if standard output was closed, since the result is a file."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        drop_output()


def drop_output() -> None:
    """Let nobody's standard output be the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
