"""JAX's persistent compilation cache, in a private folder of the user.

An entry is machine code. The folder must therefore be writable by its user alone, and its name
identifies the instructions of the processor, because machines that share a home directory may
differ.
"""

import errno
import hashlib
import os
import platform
import re
import stat
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import jax

from ic_jax import multihost

SYSTEM = (0, 65534)  # users that own a system's folders: root, and what containers see for it
AHEAD = "compiling ahead"  # name of a thread that compiles while weights are read
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def enable() -> None:
    """Store every program that is compiled from now on in ~/.cache/ic_jax/xla-PROCESSOR.

    `XDG_CACHE_HOME` replaces ~/.cache, and `JAX_COMPILATION_CACHE_DIR` the whole path. If the
    folder cannot be created, or others can write to it, a warning says so and no program is
    stored. With several processes only the first writes, and all read.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        try:
            folder = _private_folder()
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            warnings.warn(f"compiled programs are not kept: {reason}", stacklevel=2)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def default_folder() -> Path:
    """Return the folder of the cache, whether it exists or not; RuntimeError without a home."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ic_jax" / f"xla-{_processor()}"


def repair(warning: str) -> str:
    """Remove the entry that JAX warns it cannot read, and return a warning that says so.

    JAX then compiles the program, but does not replace the entry. The warning contains only the
    name of the function, so its entries for other shapes are removed as well. Any other warning is
    returned unchanged.
    """
    match = _UNREADABLE.match(warning)
    if match is None:
        return warning
    folder = Path(jax.config.values["jax_compilation_cache_dir"])
    if multihost.is_first():  # others do not write
        with suppress(OSError):
            for entry in folder.glob(f"{match[1]}-*-cache"):
                entry.unlink(missing_ok=True)
    return f"{folder}: an entry of {match[1]} was damaged; it is compiled and written anew"


def is_ahead() -> bool:
    """Return whether a thread compiles ahead of a call."""
    return any(thread.name == AHEAD for thread in threading.enumerate())


def _private_folder() -> Path:
    """Return the folder of the cache, created if it is missing.

    Raises:
        OSError: the folder cannot be created, or others can write to it.
        RuntimeError: the user has no home directory.
    """
    folder = default_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"{folder}: {error.strerror}") from None
    if hasattr(os, "getuid"):  # on other systems a home directory is private
        _refuse_others(folder)
    return folder


def _refuse_others(folder: Path) -> None:
    """Raise PermissionError if another user could have written a program of the folder.

    Others may not exchange a parent, so that it stays the folder that was looked at.
    """
    user = os.getuid()
    inside = [folder, *(Path(entry.path) for entry in os.scandir(folder))]
    states = [(path, path.lstat()) for path in inside]
    unsafe = [path for path, s in states if s.st_uid != user or s.st_mode & 0o022]
    states = [(path, path.lstat()) for path in folder.resolve().parents]
    # In a folder with the sticky bit, such as /tmp, others cannot exchange what is not theirs.
    unsafe += [
        path
        for path, s in states
        if s.st_uid not in (user, *SYSTEM) or (s.st_mode & 0o002 and not s.st_mode & stat.S_ISVTX)
    ]
    if unsafe:
        raise PermissionError(
            errno.EPERM,
            f"others can write to {unsafe[0]}; make it yours alone, and remove {folder}, whose "
            "programs may be theirs",
        )


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return a digest of the instructions that code for this CPU may use."""
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return hashlib.sha256(line.encode()).hexdigest()[:16]
    text = f"{platform.machine()} {platform.processor()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
