"""Compiled programs kept between runs, under the user's cache directory."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

# What JAX warns of when it cannot read an entry. It compiles again, but never writes the entry
# anew, so that the damage would stay.
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


@contextmanager
def kept() -> Iterator[None]:
    """Keep what is compiled within, and remove entries that turn out to be damaged."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "ic_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    show = warnings.showwarning

    def show_or_heal(message: Warning | str, *rest: Any) -> None:
        found = _DAMAGED.search(str(message))
        if found is None:
            show(message, *rest)
            return
        for entry in folder.glob(f"{found[1]}-*"):
            entry.unlink(missing_ok=True)
        show(f"{folder}: a compiled program was damaged; it is removed and made anew", *rest)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # each damaged entry, not just the first
        warnings.showwarning = show_or_heal  # type: ignore[assignment]
        yield
