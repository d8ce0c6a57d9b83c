"""Origin of a figure: machine, versions, date and commit, as every result file states them."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def origin(*packages: str) -> dict[str, Any]:
    """Return the machine, the versions of `packages`, the date and the commit."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit_of(Path(__file__).parent),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }


def commit_of(folder: Path) -> str:
    """Return the commit that is checked out in a folder; "" where git knows none."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return run.stdout.strip()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
