"""What drawing and training at full size need on TPUs, planned without owning any.

    pip install 'jax[tpu]' && python -m benchmarks.plans            # all of them
    python -m benchmarks.plans v6e:4x4 "batch 64 --remat"           # those that have either text

Runs the plans below one after the other and keeps what they say in plans.json. Each takes minutes
of one core; those that are there already, from the same commit, are not run again. Where one does
not fit, what it says to try is planned as well.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.origin import origin

PLANS = (
    "infer plan --topology v6e:2x2 --mesh tensor=4",
    "infer plan --topology v6e:2x2 --mesh tensor=4 --split-prepare",
    "infer plan --topology v6e:2x2 --mesh data=1 --split-prepare",  # one chip
    "infer plan --topology v5e:2x4",
    "train plan --topology v5e:16x16 --resolution 512 --batch 256",
    "train plan --topology v5e:16x16 --resolution 1024 --batch 256",
    "train plan --topology v6e:4x4 --resolution 512 --batch 32",
    "train plan --topology v6e:4x4 --resolution 1024 --batch 32",
    "train plan --topology v5p:4x4x4 --resolution 512 --batch 64",
    "train plan --topology v5p:4x4x4 --resolution 1024 --batch 64",
    "train plan --topology v5p:4x4x4 --resolution 512 --batch 64 --remat dots",
    "train plan --topology v5p:4x4x4 --resolution 512 --batch 64 --remat none",
)
RESULTS = Path(__file__).with_suffix(".json")


def main(texts: list[str]) -> None:
    for command in PLANS:
        if not texts or any(text in command for text in texts):
            plan: str | None = command
            while plan is not None:
                plan = instead(plan, kept(plan))


def kept(command: str) -> list[dict[str, Any]]:
    """What a command says, run unless it was by this commit; nothing if it fails."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    where = origin("jax", "flax", "libtpu")
    if found.get(command, {}).get("commit") != where["commit"]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.json"
            run = [sys.executable, "-m", *command.split(), "--json", str(file)]
            if subprocess.run(run, check=False).returncode != 0:
                return []
            found[command] = {"plans": json.loads(file.read_text()), **where}
            RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    return found[command]["plans"]


def instead(command: str, plans: list[dict[str, Any]]) -> str | None:
    """The command with what its plan says to try; None if it fits, or nothing is left to try."""
    for plan in plans:
        word, _, options = plan.get("suggestion", "").partition(" ")
        if word == "try" and options not in command:
            return f"{command} {options}"  # of an option given twice the last counts
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
