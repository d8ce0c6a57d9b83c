"""JAX's persistent compilation cache: switched on for every command, in a folder of the user's own.

Entries are machine code, so the folder must belong to the user alone, and its name says what the
processor's code may use: a home directory may be shared by machines that differ.
"""

import hashlib
import os
import platform
import warnings
from contextlib import suppress
from pathlib import Path

import jax


def enable() -> None:
    """Keep every program that is compiled from now on in ~/.cache/ic_jax/xla-PROCESSOR.

    `XDG_CACHE_HOME` names another place than ~/.cache. Where `JAX_COMPILATION_CACHE_DIR` names a
    folder, that one is used. Where the folder cannot be made or is not the user's own, a warning
    says so and nothing is kept.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "ic_jax" / f"xla-{_processor()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            warnings.warn(f"{folder}: no compilation cache ({error.strerror})", stacklevel=2)
            return
        if not _is_private(folder):
            warnings.warn(
                f"{folder}: no compilation cache, since others can write there; make it yours "
                "alone (chmod 700), or remove it",
                stacklevel=2,
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _is_private(folder: Path) -> bool:
    """Return whether nobody else can write there."""
    if not hasattr(os, "getuid"):  # Windows: a home is its user's own
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _processor() -> str:
    """Return a digest of the instructions that code for this CPU may use."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return hashlib.sha256(line.encode()).hexdigest()[:16]
    text = f"{platform.machine()} {platform.processor()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
