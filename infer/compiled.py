"""Compiled programs kept between runs, under the user's cache directory."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from ic_jax import programs


def kept() -> AbstractContextManager[None]:
    """Keep what is compiled within in ~/.cache/ic_jax/programs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return programs.kept_in(root / "ic_jax" / "programs")
