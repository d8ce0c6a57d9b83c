"""Plans of drawing and training at full size on machines that people rent, none of them attached.

    pip install -e '.[train,cuda13,tpu]'
    python -m benchmarks.plans                         # all of them, the most telling first
    python -m benchmarks.plans h100:1 "infer --v5e"    # those that contain either text
    python -m benchmarks.plans --table                 # only write the table of docs/plans.md anew

Runs the commands below one after the other and writes their reports to plans.json. Each takes
minutes of one core; reports of the same commit are not made again. Where a plan does not fit, the
change that it suggests is planned as well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ic_jax.measuring.origin import origin

LEAN = "--set cache=CACHE --set optimizer=adafactor"
# Machines in the order in which they are planned; of a training step on each, the samples and the
# settings of the recipe with which it fits.
MACHINES = {
    "h100:1": (1, LEAN),
    "h200:1": (1, ""),
    "h100:8": (8, ""),
    "v6e:2x4": (8, ""),
    "v5e:4x4": (16, ""),
    "b200:1": (1, ""),
    "h200:8": (8, ""),
    "a100-80:1": (1, LEAN),
    "a100-80:8": (8, ""),
    "b200:8": (8, ""),
    "h100:4": (4, ""),
    "h200:4": (4, ""),
    "a100-80:4": (4, ""),
    "b200:4": (4, ""),
    "h100:2x8": (16, ""),
    "v5e:2x4": (8, ""),
    "v5p:4x4x4": (64, ""),
    "v5e:16x16": (256, ""),
    "v6e:16x16": (256, ""),
}


def drawing(machine: str, side: int) -> str:
    return f"infer plan --topology {machine} --height {side} --width {side}"


def training(machine: str, side: int) -> str:
    batch, settings = MACHINES[machine]
    text = f"train plan --topology {machine} --resolution {side} --batch {batch} {settings}"
    return text.rstrip()


PLANS = (
    *(plan(m, side) for m in MACHINES for plan, side in ((drawing, 1024), (training, 512))),
    *(plan(m, side) for m in MACHINES for plan, side in ((training, 1024), (drawing, 512))),
)
RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parent.parent / "docs" / "plans.md"
BEGIN, END = "<!-- table -->\n\n", "\n\n<!-- end of the table -->"
TRAFFIC = ("bytes moved per device", "of which copies of weights")
COMPILERS = ("libtpu", "jax-cuda13-plugin")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the plans that the arguments choose, and write the table of all plans anew."""
    parser = argparse.ArgumentParser(description="Plans at full size of machines that people rent.")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="only commands that contain one")
    parser.add_argument(
        "--table", action="store_true", help="only write the table of docs/plans.md"
    )
    args = parser.parse_args(arguments)
    for command in () if args.table else PLANS:
        if not args.texts or any(text in command for text in args.texts):
            plan: str | None = command
            while plan is not None:
                plan = suggested(plan, reports(plan))
    page = PAGE.read_text()
    before, _, after = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(table()) + END + after.partition(END)[2])


def stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def reports(command: str) -> list[dict[str, Any]]:
    """Return a command's reports, run unless this commit did; empty if it is refused."""
    results, now = stored(), origin("jax", "flax", *filter(installed, COMPILERS))
    if results.get(command, {}).get("commit") != now["commit"]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.json"
            run = [sys.executable, "-m", *command.split(), "--json", str(file)]
            process = subprocess.run(run, check=False, stderr=subprocess.PIPE, text=True)
            plans = json.loads(file.read_text()) if process.returncode == 0 else []
            refused = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
            if process.returncode and not refused:
                sys.exit(f"error: `{command}` failed:\n{process.stderr}")
        results = stored() | {command: {"plans": plans, "refused": refused, **now}}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return results[command]["plans"]


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
    """Return the lines of a Markdown table of the results, and of what was not run."""
    columns = ("program", "devices", "mesh, settings", "GB a device, of", "TFLOP", "GB moved")
    columns = (*columns, "of it weight copies", "s at least", "s by the compiler", "commit")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    results, missing = stored(), dict[str, list[str]]()
    for command in PLANS:
        tried = [text for text in results if f"{text} ".startswith(f"{command} ")]
        body = [row for text in tried for row in rows(text, results[text])]
        if not body:
            what, machine = subject(command)
            missing.setdefault(what, []).append(machine)
        lines += body
    lines += [""] * bool(missing)
    return lines + [f"- Not run: {what} on {', '.join(missing[what])}." for what in sorted(missing)]


def subject(command: str) -> tuple[str, str]:
    """Return what a command plans, and the machine."""
    words = command.split()
    side = words[words.index("--resolution" if words[0] == "train" else "--height") + 1]
    kind = {"train": "training", "infer": "drawing"}[words[0]]
    return f"{kind}, {side}", words[words.index("--topology") + 1]


def rows(command: str, result: dict[str, Any]) -> list[str]:
    """Return the table's rows of a command; none of an earlier version, which counted otherwise."""
    if COMPILERS[1] not in result["versions"]:
        return []
    what, machine = subject(command)
    words = command.split()
    options = words[words.index("--batch") + 2 :] if "--batch" in words else words[8:]
    settings = [word for word in options if not word.startswith("--")]
    settings = ["cache" if word.startswith("cache=") else word for word in settings]
    lines = []
    for plan in result["plans"]:
        sizes, least = plan["bytes per device"], plan.get("seconds at least", {})
        batch = f"batch {plan['settings']['batch']}"
        cells = (
            *(what, machine, ", ".join([plan["mesh"], batch, *settings])),
            f"{sizes['needed'] / 1e9:.1f}, {sizes['memory'] / 1e9:.0f}",
            plan.get("TFLOP per device", "does not fit"),
            *(f"{plan.get(key, 0) / 1e9:.1f}" for key in TRAFFIC),
            least.get("overlapped", ""),
            plan.get("seconds by the compiler", {}).get("in all", ""),
            result["commit"],
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for error in result.get("refused", []):
        text = error.removeprefix("error: ")
        lines.append(f"| {what} | {machine} | refused: {text}{' |' * 8}")
    return lines


if __name__ == "__main__":
    main()
