"""Atomic writes of files and folders, SHA-256 of files, and locks between processes."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_folder(
    out: Path, *, overwrite: bool, owns: Callable[[str], bool], resume: bool = False
) -> Iterator[Path]:
    """Yield a folder beside `out` to write into, which replaces `out` at the end.

    An exception removes the folder. A killed process leaves it behind under another name than
    `out`; the next run with the same `out` removes it.

    Args:
        resume: keep the folder after an exception, and yield it with what an earlier run left.
        overwrite: replace an `out` that exists and is not empty.
        owns: whether an entry of that name may be replaced. A folder with any other entry
            is never replaced.

    Raises:
        FileExistsError: `out` is in the way, or another process is writing it.
    """
    out = out.absolute()
    check_replaceable(out, overwrite, owns)
    partial, old = (out.with_name(out.name + suffix) for suffix in (".partial", ".old"))
    for leftover in (partial, old):
        check_replaceable(leftover, True, owns)
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, f"{partial}: another process is writing it"):
        if not resume:
            _empty(partial)
        for part in partial.rglob(".*.part"):  # of a killed process
            part.unlink()
        try:
            with named_in_errors(partial):
                yield partial
            for folder, _, _ in os.walk(partial):
                _sync_folder(Path(folder))
            _replace(partial, out, old)
        except BaseException:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def atomic_file(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to, whose file replaces `path` at the end.

    It is `part_path`'s, and an exception removes it.
    """
    part = part_path(path, folder)
    try:
        with named_in_errors(path):
            yield part
            with part.open("rb+") as file:
                sync(file)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def part_path(path: Path, folder: Path | None = None) -> Path:
    """Return where `atomic_file` writes: beside `path`, or in a `folder` on the same disk."""
    return (folder or path.parent) / f".{path.name}.{os.getpid()}.part"


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file that is at `path` whole or not at all."""
    with atomic_file(path) as part:
        part.write_bytes(data)


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Name `path` in errors of the system that name no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def copy_file(source: Path, path: Path) -> None:
    """Copy a file; errors of the system name the copy, some both files."""
    with named_in_errors(path):
        shutil.copyfile(source, path)


def check_room(folder: Path, need: int) -> None:
    """Raise OSError if the disk of an existing folder has less than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if need > free:
        reason = f"{_size(need)} needed, {_size(free)} free; make room or name another folder"
        raise OSError(errno.ENOSPC, reason, str(folder))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def as_json(values: Any) -> bytes:
    """Return the bytes of a JSON file for people to read, as `json_text`."""
    return (json_text(values, indent=2) + "\n").encode()


def json_text(values: Any, **layout: Any) -> str:
    """Return JSON; a number that is not finite, which JSON lacks, becomes null.

    Args:
        layout: as for `json.dumps`.
    """
    try:
        return json.dumps(values, allow_nan=False, **layout)
    except ValueError:
        plain = json.loads(json.dumps(values, **layout), parse_constant=lambda _: None)
        return json.dumps(plain, allow_nan=False, **layout)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file that is at `path` whole or not at all."""
    atomic_write(path, as_json(values))


def sync(file: BinaryIO) -> None:
    """Force a file's bytes to the disk, before a file that names it is written."""
    file.flush()
    os.fsync(file.fileno())


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Lock an existing file or folder against other processes; a killed process holds no lock.

    Raises:
        FileExistsError: another process holds the lock; `busy` is the message.
    """
    import fcntl  # Windows lacks this module, and models can be read there

    lock = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(busy) from None
        yield
    finally:
        os.close(lock)


def check_replaceable(out: Path, overwrite: bool, owns: Callable[[str], bool]) -> None:
    """Raise FileExistsError if `atomic_folder` would not replace `out`, before any long work."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out}: is a file; name a folder")
    entries = sorted(path.name for path in out.iterdir())
    foreign = [name for name in entries if not owns(name)]
    if foreign:
        raise FileExistsError(
            f"{out}: exists and holds {foreign[0]}, which this command did not write; "
            "name another folder"
        )
    if entries and not overwrite:
        raise FileExistsError(f"{out}: exists; name another folder or give --overwrite")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _replace(partial: Path, out: Path, old: Path) -> None:
    if old.exists():  # a kill between the two renames below left it
        shutil.rmtree(old)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    _sync_folder(out.parent)
    if old.exists():
        shutil.rmtree(old)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
