"""The record of all trials as JSON, and its table in docs/reliability.md."""

import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ic_jax.files import as_json, atomic_write

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
DOCS = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults -->\n", "<!-- end of faults -->\n"
LIBRARIES = ("jax", "flax", "orbax-checkpoint", "array_record", "grain")
SURVIVED = "survived"


class Records:
    """Trials by fault, by what it was done to, and by seed."""

    def __init__(self, file: Path = RESULTS, docs: Path = DOCS):
        """Read what earlier runs recorded."""
        self.file, self.docs = file, docs
        self.values: dict[str, Any] = {"trials": {}}
        if file.exists():
            self.values = json.loads(file.read_text())
        self._origin: dict[str, Any] = {}

    def holds(self, fault: str, of: str, seed: int, digest: str) -> bool:
        """Return whether a trial survived before, with the same text of the code under test."""
        trial = self.values["trials"].get(fault, {}).get(of, {}).get(str(seed))
        return bool(trial) and trial["outcome"] == SURVIVED and trial["digest"] == digest

    def add(self, fault: str, of: str, seed: int, trial: dict[str, Any]) -> None:
        """Record a trial, with where and when it was done."""
        self._origin = self._origin or _origin()
        trial |= {"commit": self._origin["commit"][:9], "date": self._origin["date"]}
        self.values |= self._origin
        self.values["trials"].setdefault(fault, {}).setdefault(of, {})[str(seed)] = trial
        self.write()

    def write(self) -> None:
        """Write the record, and the table that follows from it."""
        atomic_write(self.file, as_json(self.values))
        before, begin, rest = self.docs.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        assert begin, f"{self.docs} has no place for the table"
        assert end, f"{self.docs} has no end of the table"
        atomic_write(self.docs, f"{before}{BEGIN}{self.table()}{END}{after}".encode())

    def table(self) -> str:
        """Return the counts as Markdown, with where and when they were obtained."""
        rows = ["| fault | of | trials | survived | told |", "| --- | --- | --- | --- | --- |"]
        total, commits, seconds = [0, 0], set(), 0.0
        for fault, by_command in sorted(self.values["trials"].items()):
            for of, by_seed in sorted(by_command.items()):
                trials = list(by_seed.values())
                survived = [trial for trial in trials if trial["outcome"] == SURVIVED]
                codes = [trial["exit code"] for trial in trials if "exit code" in trial]
                told = sum(code != 0 for code in codes) if codes else ""
                rows.append(f"| {fault} | {of} | {len(trials)} | {len(survived)} | {told} |")
                total = [total[0] + len(trials), total[1] + len(survived)]
                commits |= {trial["commit"] for trial in trials}
                seconds += sum(trial["seconds"] for trial in trials)
        rows.append(f"| all | | {total[0]} | {total[1]} | |")
        values = self.values
        versions = ", ".join(f"{name} {number}" for name, number in values["versions"].items())
        said = (
            f"Last run: {values['date']}, commit {values['commit'][:9]}, the trials over "
            f"{len(commits)} commits; {values['hardware']}; {versions}; "
            f"{seconds / 60:.0f} minutes of a busy machine.\n"
        )
        return "\n".join([*rows, "", said])


def digest(names: Iterable[str]) -> str:
    """Hash the Python files of packages and the files of these names."""
    total = hashlib.sha256()
    for name in sorted(names):
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            total.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def _origin() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    python = {"Python": sys.version.split()[0]}
    return {
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": python | {name: version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
