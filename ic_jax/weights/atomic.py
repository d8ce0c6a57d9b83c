"""Writing a folder whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(
    out: Path, *, overwrite: bool, owns: Callable[[str], bool], resume: bool = False
) -> Iterator[Path]:
    """Gives a folder beside `out` to write into, which becomes `out` at the end.

    An exception removes it. What a killed process left is never taken for `out`; the next
    run to the same place removes it.

    Args:
        resume: keep the folder after an exception, and find there what an earlier run left.
        overwrite: replace an `out` that exists and is not empty.
        owns: whether an entry of that name is of the kind written here. A folder with
            anything else in it is never replaced.

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
        try:
            yield partial
            _sync_folders(partial)
            _replace(partial, out, old)
        except BaseException:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold a file or folder that exists against other processes; the lock dies with its own.

    Raises:
        FileExistsError: another process holds it; `busy` is what is said then.
    """
    import fcntl  # which Windows has not: reading models must work there

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
    """FileExistsError if `written_whole` would not replace `out`: before work of minutes."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out}: is a file; name a folder")
    entries = sorted(path.name for path in out.iterdir())
    foreign = [name for name in entries if not owns(name)]
    if foreign:
        raise FileExistsError(
            f"{out}: exists and holds {foreign[0]}, which is not of this command's making; "
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
    _sync(out.parent)
    if old.exists():
        shutil.rmtree(old)


def _sync_folders(top: Path) -> None:
    for folder, _, _ in os.walk(top):
        _sync(Path(folder))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
