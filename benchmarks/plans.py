"""Plans of drawing and training at full size on machines that people rent, none of them attached.

    pip install -e '.[train,cuda13,tpu]'
    python -m benchmarks.plans                        # all of them
    python -m benchmarks.plans h100:1 "infer --v5e"   # those that contain either text
    python -m benchmarks.plans table                  # the results as Markdown

Runs the commands below one after the other and writes their reports to plans.json. Each takes
minutes of one core; reports of the same commit are not made again. Where a plan does not fit, the
change that it suggests is planned as well.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ic_jax.measuring.origin import origin

# Settings of a recipe with which training fits, and the samples of a step, by machine.
LEAN = "--set cache=CACHE --set optimizer=adafactor --set stage1.ema=0"
TRAINING = {
    "h100:1": ("--batch 1", LEAN),
    "h200:1": ("--batch 1", ""),
    "h100:8": ("--batch 8", ""),
    "v6e:2x4": ("--batch 8", ""),
    "v5e:4x4": ("--batch 16", LEAN),
    "h200:8": ("--batch 8", ""),
    "a100-80:8": ("--batch 8", ""),
    "b200:1": ("--batch 1", ""),
    "b200:8": ("--batch 8", ""),
    "a100-80:1": ("--batch 1", LEAN),
    "h100:4": ("--batch 4", ""),
    "h200:4": ("--batch 4", ""),
    "a100-80:4": ("--batch 4", ""),
    "b200:4": ("--batch 4", ""),
    "v5p:4x4x4": ("--batch 64", ""),
    "v5e:2x4": ("--batch 8", LEAN),
    "v5e:16x16": ("--batch 256", ""),
    "v6e:16x16": ("--batch 256", ""),
}
SIDES = (1024, 512)
DRAWING = tuple(
    f"infer plan --topology {machine} --height {side} --width {side}"
    for side in SIDES
    for machine in TRAINING
)
STEPS = tuple(
    " ".join(f"train plan --topology {machine} --resolution {side} {batch} {settings}".split())
    for side in reversed(SIDES)
    for machine, (batch, settings) in TRAINING.items()
)
PLANS = (*DRAWING[: len(TRAINING)], *STEPS, *DRAWING[len(TRAINING) :])
RESULTS = Path(__file__).with_suffix(".json")


def main(texts: list[str]) -> None:
    if texts == ["table"]:
        print("\n".join(table()))
        return
    for command in PLANS:
        if not texts or any(text in command for text in texts):
            plan: str | None = command
            while plan is not None:
                plan = suggested(plan, reports(plan))


def stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def reports(command: str) -> list[dict[str, Any]]:
    """Return a command's reports, run unless this commit did; empty if it fails."""
    results, now = stored(), origin("jax", "flax", *filter(installed, COMPILERS))
    if results.get(command, {}).get("commit") != now["commit"]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.json"
            run = [sys.executable, "-m", *command.split(), "--json", str(file)]
            process = subprocess.run(run, check=False, stderr=subprocess.PIPE, text=True)
            plans = json.loads(file.read_text()) if process.returncode == 0 else []
            refused = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
        results = stored() | {command: {"plans": plans, "refused": refused, **now}}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return results[command]["plans"]


COMPILERS = ("libtpu", "jax-cuda13-plugin")


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def suggested(command: str, plans: list[dict[str, Any]]) -> str | None:
    """Return the command with the change that its plan suggests; None if there is none."""
    for plan in plans:
        word, _, options = plan.get("suggestion", "").partition(" ")
        if word == "try" and options not in command:
            return f"{command} {options}"  # of an option given twice the last counts
    return None


def table() -> list[str]:
    """Return the lines of a Markdown table of the results; "not run" where there is none."""
    columns = ("program", "devices", "mesh, settings", "GB a device, of", "TFLOP", "GB moved")
    lines = [f"| {' | '.join((*columns, 's at least', 's by the compiler'))} |"]
    lines.append("| --- " * (len(columns) + 2) + "|")
    results = stored()
    for command in PLANS:
        tried = [command, *(c for c in results if c.startswith(f"{command} "))]
        for text in tried:
            lines += rows(text, results.get(text))
    return lines


def rows(command: str, result: dict[str, Any] | None) -> list[str]:
    """Return the table's rows of a command."""
    words = command.split()
    machine = words[words.index("--topology") + 1]
    side = words[words.index("--resolution" if words[0] == "train" else "--height") + 1]
    what = f"{'training' if words[0] == 'train' else 'drawing'}, {side}"
    changed = ", ".join(w for w in words[words.index(side) :] if "=" in w and "CACHE" not in w)
    cached = ", cache" * ("CACHE" in command)
    if result is None:
        return [f"| {what} | {machine} | not run | | | | | |"]
    if not result["plans"]:
        return [f"| {what} | {machine} | refused: {'; '.join(result['refused'])[7:]} | | | | | |"]
    lines = []
    for plan in result["plans"]:
        sizes, least = plan["bytes per device"], plan.get("seconds at least", {})
        memory = f"{sizes['needed'] / 1e9:.1f}, {sizes['memory'] / 1e9:.0f}"
        fits = "" if plan["fits"] else ": does not fit"
        estimate = plan.get("seconds by the compiler", {}).get("in all", "")
        settings = ", ".join(filter(None, [plan["mesh"], changed])) + cached
        lines.append(
            f"| {what} | {machine} | {settings} | {memory}{fits} | "
            f"{plan.get('TFLOP per device', '')} | "
            f"{plan.get('bytes moved per device', 0) / 1e9:.0f} | "
            f"{least.get('overlapped', '')} | {estimate} |"
        )
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
