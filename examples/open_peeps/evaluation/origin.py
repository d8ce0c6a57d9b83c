"""Origin of a figure: machine, versions, date and commit, written into every file of results."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ic_jax.version import __version__


def origin() -> dict[str, Any]:
    """Return the machine, versions, date and commit of a measurement made now."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "ic_jax": __version__,
        "jax": version("jax"),
        "flax": version("flax"),
        "python": platform.python_version(),
    }
