"""Work of `python -m infer bench --all`: runs the parts in processes of their own, within a budget.

JAX returns no memory of a GPU before its process ends, and training needs most of it. And a process
that dies takes no results of other parts with it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ic_jax.measuring.parts import Budget, Results
from infer.bench.parts import TRAINING, TRAINING_SECONDS

ROOT = Path(__file__).parents[2]
OPTIONS = ("size", "height", "width", "steps", "text_length", "batch", "dtype", "samples")
TRAINING_BATCHES = ("1", "2")
TRAINING_BYTES = 90e9  # of a step of one sample as `train bench` has it by default
LEAN_RECIPE = ROOT / "docs" / "recipes" / "h100.toml"
POLL = 0.5  # seconds between looks at what a process has written
GRACE = 15.0  # seconds after the budget until a process is ended
PATIENCE, LEAST = 2.0, 60.0  # times what a part takes about, and seconds, until it is ended
SHORTEST = 10.0  # seconds in which a process can measure anything


def measure_all(
    args: argparse.Namespace, names: Sequence[str], results: Results, budget: Budget
) -> None:
    """Measure the named parts of drawing and the training, in the order of the names."""
    results.write()
    options = [
        word
        for name in OPTIONS
        if (value := getattr(args, name)) is not None
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    drawing = ["infer", "bench", *options, *(["--no-adapter"] if args.no_adapter else [])]
    at = names.index(TRAINING) if TRAINING in names else len(names)

    def draw(parts: Sequence[str]) -> None:
        while left := [name for name in parts if name not in results.parts]:
            run([*drawing, "--only", *left], left, results, budget)

    draw(names[:at])
    if TRAINING in names:
        training = ["train", "bench", *_recipe(results), "--size", args.size]
        run(training, [TRAINING], results, budget, TRAINING_SECONDS, prefix=f"{TRAINING}, ")
    draw(names[at + 1 :])


def _recipe(results: Results) -> list[str]:
    """Return the arguments of `train bench`: for a device with less memory, a lean recipe."""
    machine = results.parts.get("machine", {}).get("result", {})
    limit = machine.get("memory limit")  # None of a CPU
    if limit is not None and limit < TRAINING_BYTES:
        return [str(LEAN_RECIPE), "--set", "stage1.accumulate=1", "--batch", "1"]
    return ["--batch", *TRAINING_BATCHES]


def run(
    command: Sequence[str],
    names: Sequence[str],
    results: Results,
    budget: Budget,
    seconds: float = SHORTEST,
    prefix: str = "",
) -> None:
    """Run `python -m COMMAND` and copy the parts that it measures to `results`.

    A part that was being measured when the process died, or that takes much longer than it should,
    is recorded as failed, and all that are in `names` if there was none. They are skipped if less
    than `seconds` are left.
    """
    if budget.left < seconds:
        for name in names:
            results.put(name, {"skipped": budget.lacks(seconds)})
        return
    before = len(results.parts)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "parts.json"
        whole = [sys.executable, "-m", *command, "--json", str(file)]
        if budget.seconds is not None:
            whole += ["--budget", f"{budget.left:.0f}"]
        process = subprocess.Popen(whole, cwd=ROOT)
        entry: dict[str, Any] = {"interrupted": True}
        running, since = _running(results), time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(POLL)
                _copy(file, results, prefix)
                if budget.left < -GRACE:
                    entry = {"failed": "stopped, the budget was spent"}
                    break
                if running != (running := _running(results)):
                    since = time.monotonic()
                longest = max(LEAST, PATIENCE * max(running.values(), default=0))
                if running and time.monotonic() - since > longest:
                    entry = {"failed": f"stopped after {longest:g} s"}
                    break
            else:
                entry = {"failed": f"its process ended with code {process.returncode}"}
        finally:
            process.kill()
            process.wait()
            _copy(file, results, prefix)
            for name in names if len(results.parts) == before else _running(results):
                results.put(name, entry)


def _running(results: Results) -> dict[str, float]:
    """Return the seconds that the part which is being measured takes about."""
    return {name: part["running"] for name, part in results.parts.items() if "running" in part}


def _copy(file: Path, results: Results, prefix: str) -> None:
    """Copy the parts of a file that are new or changed."""
    if not file.exists():
        return
    values = json.loads(file.read_text())
    parts = {prefix + name: entry for name, entry in values.pop("parts").items()}
    if any(results.parts.get(name) != entry for name, entry in parts.items()):
        results.facts = values | results.facts
        results.parts |= parts
        results.write()
