"""Second starts of drawing and of training: this checkout beside an earlier one.

    git worktree add EARLIER aeefb4e
    python -m benchmarks.second_start EARLIER [--repeats 5]

Every start is a fresh process. `infer` draws the picture of the small model; `train` resumes a run
of the tests' toy model, which was stopped, for two steps. One start compiles everything
(--no-compile-cache) and one keeps what it compiles; those after it find the programs: in JAX's
compilation cache here, at aeefb4e in program files of its own. The two checkouts take turns. Cores
may be shared with other work, so the processor time of each process stands beside the wall time.
Writes second_start.json beside this script.
"""

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.checkout import Checkout
from ic_jax.measuring.origin import commit_of, origin

HERE = Path(__file__).parent.parent
SETUP = """
import sys
from pathlib import Path
from tests.toy import write_data, write_model

write_model(Path(sys.argv[1]) / "model")
write_data(Path(sys.argv[1]))
"""
RECIPE = """
model = "{folder}/model"
data = "{folder}/data"
out = "{folder}/run"
dtype = "float32"
text_length = 16
saving.every = 1
reporting.every = 1
reporting.preview_every = 0
reporting.effect_every = 0
stage1.steps = 1000
stage1.batch = 8
stage1.resolution = 32
"""


class Starts(Checkout):
    """Starts of a checkout, with a stopped training run."""

    def __init__(self, root: Path, folder: Path):
        super().__init__(root, folder)
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(RECIPE.format(folder=folder))

    def infer(self, *options: str) -> dict[str, float]:
        """Draw the small model's picture; return seconds of wall and processor time."""
        out = ("--out", self.folder / "out.png", "--overwrite")
        return self._seconds("-m", "infer", *out, *options)

    def start_run(self) -> None:
        """Train from the first step, and stop after the second as Ctrl-C does."""
        if self.python("-c", SETUP, self.folder).wait():
            sys.exit(f"error: the toy model of {self.root} cannot be written")
        process = self.python("-m", "train", self.recipe)
        metrics = self.folder / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and _last_step(metrics) >= 2):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.wait()
        self.stopped_at = _last_step(metrics)

    def train(self, *options: str) -> dict[str, float]:
        """Resume the stopped run for two steps; return seconds of wall and processor time."""
        run = self.folder / "resumed"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.folder / "run", run)
        settings = ("--set", f"out={run}", "--set", f"stage1.steps={self.stopped_at + 2}")
        return self._seconds("-m", "train", self.recipe, *settings, *options)

    def _seconds(self, *arguments: str | Path) -> dict[str, float]:
        wall, processor = self.timed(*arguments)
        return {"wall": wall, "processor": processor}


def _last_step(metrics: Path) -> int:
    lines = metrics.read_text().splitlines()
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def measure(checkouts: dict[str, Starts], command: str, repeats: int) -> dict[str, dict]:
    """Return the seconds of starts that compile and of starts that do not, by checkout."""
    first, seconds = {}, {}
    for name, checkout in checkouts.items():
        first[name] = getattr(checkout, command)("--no-compile-cache")
        getattr(checkout, command)()
        seconds[name] = list[dict[str, float]]()
    for _ in range(repeats):
        for name, checkout in checkouts.items():
            seconds[name].append(getattr(checkout, command)())
    return {
        name: {
            "compiling": {kind: round(value, 2) for kind, value in first[name].items()},
            "second, median": {
                kind: round(statistics.median(run[kind] for run in runs), 2) for kind in runs[0]
            },
            "second, least": {kind: round(min(run[kind] for run in runs), 2) for kind in runs[0]},
        }
        for name, runs in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("earlier", type=Path, help="folder of the earlier checkout")
    parser.add_argument("--repeats", type=int, default=5, help="second starts of each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        roots = {"earlier": args.earlier.resolve(), "here": HERE}
        checkouts = {name: Starts(root, Path(folder) / name) for name, root in roots.items()}
        results = {"infer": measure(checkouts, "infer", args.repeats)}
        for checkout in checkouts.values():
            checkout.start_run()
        results["train"] = measure(checkouts, "train", args.repeats)
    report = {
        "seconds": results,
        "repeats": args.repeats,
        "earlier": commit_of(args.earlier),
        **origin("jax", "jaxlib", "flax"),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
