"""Plans of drawing and training at full size on TPUs that need not be attached.

    pip install 'jax[tpu]' && python -m benchmarks.plans            # all of them
    python -m benchmarks.plans v6e:4x4 "batch 64 --remat"           # those that contain either text

Runs the commands below one after the other and writes their reports to plans.json. Each takes
minutes of one core; reports of the same commit are not made again. Where a plan does not fit, the
change that it suggests is planned as well.
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
                plan = suggested(plan, reports(plan))


def reports(command: str) -> list[dict[str, Any]]:
    """Return a command's reports, run unless this commit did; empty if it fails."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    now = origin("jax", "flax", "libtpu")
    if results.get(command, {}).get("commit") != now["commit"]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.json"
            run = [sys.executable, "-m", *command.split(), "--json", str(file)]
            if subprocess.run(run, check=False).returncode != 0:
                return []
            results[command] = {"plans": json.loads(file.read_text()), **now}
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return results[command]["plans"]


def suggested(command: str, plans: list[dict[str, Any]]) -> str | None:
    """Return the command with the change that its plan suggests; None if there is none."""
    for plan in plans:
        word, _, options = plan.get("suggestion", "").partition(" ")
        if word == "try" and options not in command:
            return f"{command} {options}"  # of an option given twice the last counts
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
