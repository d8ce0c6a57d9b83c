"""Origin of a figure: machine, versions, date and commit, as every result file states them."""

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")  # of Linux


def origin(*packages: str) -> dict[str, Any]:
    """Return the machine, the versions of those `packages` that are installed, date and commit."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit_of(Path(__file__).parent),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), **_versions(packages)},
    }


def commit_of(folder: Path) -> str:
    """Return the commit that is checked out in a folder; "" where git knows none."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return ""
    return run.stdout.strip()


def _versions(packages: Iterable[str]) -> dict[str, str]:
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _processor() -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
