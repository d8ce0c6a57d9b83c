"""What safety costs: commands of this checkout beside those of an earlier one, in turns.

    git worktree add EARLIER 5f3ec6f^                    # before files were distrusted
    python -m benchmarks.versus_earlier EARLIER [--rounds 7]

Every run is a fresh process. In each round the checkouts take turns at every program, and the one
that begins changes from round to round:

- first picture: `python -m infer`, the whole process, with its programs compiled already.
- load: the small model, its checksums compared; the loading alone, after the imports.
- prepare: `python -m train prepare` of 300 pictures of 256 pixels by one worker.
- training step: the median step of `python -m train bench --size toy`, which compiles for minutes.

Seconds are of wall and of processor time, since cores may be shared with other work. A ratio above
1 means that this checkout is slower: the median over rounds of pairs. Writes versus_earlier.json
beside this script, after every program.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ic_jax.files import write_json
from ic_jax.measuring.origin import commit_of, origin

HERE = Path(__file__).parent.parent
PICTURES, SIDE = 300, 256
LOAD = """
import json, sys, time
from ic_jax import InstantCharacterPipeline
begin = time.perf_counter(), time.process_time()
InstantCharacterPipeline.from_pretrained(dtype="float32")
end = time.perf_counter(), time.process_time()
print(json.dumps([b - a for a, b in zip(begin, end)]))
"""
Seconds = tuple[float, float]  # of wall and of processor time


class Checkout:
    """A checkout with a compilation cache of its own."""

    def __init__(self, root: Path, folder: Path, pictures: Path):
        self.root, self.folder, self.pictures = root, folder, pictures
        folder.mkdir()
        self.environment = os.environ | {"XDG_CACHE_HOME": str(folder), "PYTHONPATH": str(root)}
        self.environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        self.said = ""  # by the last process

    def first_picture(self) -> Seconds:
        return self._whole("-m", "infer", "--out", self.folder / "out.png", "--overwrite")

    def load(self) -> Seconds:
        self._whole("-c", LOAD)
        wall, processor = json.loads(self.said.splitlines()[-1])
        return wall, processor

    def training_step(self) -> Seconds:
        file = self.folder / "bench.json"
        options = ("--size", "toy", "--samples", "30", "--set", "dtype=float32")
        self._whole("-m", "train", "bench", *options, "--json", file)
        step = json.loads(file.read_text())["parts"]["batch 1"]["result"]["step"]
        return step["ms"] / 1000, float("nan")

    def prepare(self) -> Seconds:
        shutil.rmtree(out := self.folder / "data", ignore_errors=True)
        options = ("--resolution", str(SIDE), "--workers", "1")
        return self._whole("-m", "train", "prepare", self.pictures, "--out", out, *options)

    def _whole(self, *arguments: str | Path) -> Seconds:
        begin, log = time.perf_counter(), self.folder / "log"
        with log.open("wb") as file:
            run = [sys.executable, *map(str, arguments)]
            options = {"cwd": self.root, "env": self.environment, "stdout": file, "stderr": file}
            process = subprocess.Popen(run, **options)  # type: ignore[call-overload]
            _, status, usage = os.wait4(process.pid, 0)
        wall, self.said = time.perf_counter() - begin, log.read_text()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: {arguments} of {self.root} failed:\n{self.said}")
        return wall, usage.ru_utime + usage.ru_stime


PROGRAMS: dict[str, Callable[[Checkout], Seconds]] = {
    "first picture": Checkout.first_picture,
    "load": Checkout.load,
    "prepare": Checkout.prepare,
    "training step": Checkout.training_step,
}


def write_pictures(folder: Path) -> None:
    """Write pictures of characters, a folder each, from a fixed seed."""
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        file = folder / f"character-{i // 10}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        rough = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(rough).resize((SIDE, SIDE)).save(file)
        file.with_suffix(".txt").write_text(f"a pattern of number {i}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("earlier", type=Path, help="folder of the earlier checkout")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each program, after one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures")
        pictures = Path(folder) / "pictures"
        checkouts = [
            Checkout(args.earlier.resolve(), Path(folder) / "earlier", pictures),
            Checkout(HERE, Path(folder) / "here", pictures),
        ]
        results: dict[str, dict[str, dict[str, float]]] = {}
        for name, run in PROGRAMS.items():
            results[name] = measure(run, checkouts, args.rounds)
            print(name, json.dumps(results[name]), flush=True)
            report = {
                "programs": results,
                "rounds": args.rounds,
                "earlier": commit_of(args.earlier),
                **origin("jax", "jaxlib", "flax"),
            }
            write_json(Path(__file__).with_suffix(".json"), report)


def measure(
    run: Callable[[Checkout], Seconds], checkouts: list[Checkout], rounds: int
) -> dict[str, dict[str, float]]:
    """Return medians of seconds and ratios by kind of time, of rounds after a first run of each."""
    runs: list[list[Seconds]] = [[] for _ in checkouts]
    for i in range(1 + rounds):
        for n in (0, 1) if i % 2 else (1, 0):
            runs[n].append(run(checkouts[n]))
    earlier, here = (np.array(seconds[1:]) for seconds in runs)
    return {
        kind: {
            "earlier": round(statistics.median(earlier[:, k]), 4),
            "here": round(statistics.median(here[:, k]), 4),
            "ratio": round(statistics.median(here[:, k] / earlier[:, k]), 3),
        }
        for k, kind in enumerate(("wall", "processor"))
        if not np.isnan(here).any(0)[k]
    }


if __name__ == "__main__":
    main()
