"""The rules for files that others may have written, in one place.

Such a file is a regular file of limited size, it stays below its folder where it is named by
another file, and what it says is data: nothing is imported, evaluated or executed for it.
"""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

MAX_TEXT = 64 * 1024**2  # bytes of a config, an index, a tokenizer or a list of captions
MAX_NAME, MAX_PARTS = 255, 100  # bytes of a file's name, and folders that it may lie in
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path, *, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device is never waited for.

    Args:
        limit: most bytes that it may have.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, or has more bytes.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
            raise ValueError(f"{path}: is {kind}; name a regular file")
        if limit is not None and status.st_size > limit:
            raise ValueError(
                f"{path}: has {status.st_size} bytes, and such a file has at most {limit}; "
                "check that it is the right one"
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path, *, limit: int = MAX_TEXT) -> bytes:
    """Read a file whole (see `open_regular`); what grows meanwhile is cut at the limit."""
    with open_regular(path, limit=limit) as file:
        # Room is made for as many bytes as are asked for.
        return file.read(min(limit, os.fstat(file.fileno()).st_size))


def read_json(path: Path, *, limit: int = MAX_TEXT) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, too large, or not JSON; NaN and Infinity are not.
    """
    return parse_json(read_bytes(path, limit=limit), str(path))


def parse_json(data: bytes | str, name: str) -> Any:
    """Parse JSON; errors begin with `name` and give the line.

    Raises:
        ValueError: it is not JSON, or nested too deep to be read.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: line {error.lineno} is not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{name}: is nested too deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def below(root: Path, name: str) -> Path:
    """Return the path of a file that another file names, as a path from `root`.

    Raises:
        ValueError: it is empty, absolute, or lies elsewhere when all links are followed.
    """
    return files_below(root)(name)


def files_below(root: Path) -> Callable[[str], Path]:
    """Return `below` of one folder, for many names: the links to the folder are followed once."""
    real_root = root.resolve()

    def path_of(name: str) -> Path:
        if not name or "\0" in name or not _can_be_named(name):
            raise ValueError(f"{root}: {name!r:.80} names no file")
        path = root / name
        real_path = Path(os.path.realpath(path))  # resolve() fails on a link that leads to itself
        if not real_path.is_relative_to(real_root):
            raise ValueError(f"{root}: {name} lies outside this folder; put the file into it")
        return path

    return path_of


def _can_be_named(name: str) -> bool:
    """Return whether a file system of this machine could have such a name."""
    try:
        parts = os.fsencode(name).split(os.fsencode(os.sep))
    except UnicodeEncodeError:
        return False
    return all(len(part) <= MAX_NAME for part in parts) and len(parts) <= MAX_PARTS
