"""Compare the time of commands here and in an earlier checkout, which take turns.

    git worktree add EARLIER 5f3ec6f^                    # before files were distrusted
    python -m benchmarks.versus_earlier EARLIER [--rounds 7] [--only "first picture" load]

Every run is a fresh process. In each round the checkouts take turns at every program, and the one
that begins changes from round to round:

- first picture: `python -m infer`, the whole process, with its programs compiled already.
- load: the small model, its checksums compared; the loading alone, after the imports.
- prepare: `python -m train prepare` of 300 pictures of 256 pixels by one worker.
- training step: the median step of `python -m train bench --size toy`, which compiles for minutes.

Seconds are of wall and of processor time, since cores may be shared with other work. A ratio above
1 means that this checkout is slower: the median over rounds of pairs. Writes versus_earlier.json
beside this script after every program; programs that are not run keep their figures.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.checkout import Checkout
from ic_jax.files import write_json
from ic_jax.measuring.origin import commit_of, origin

HERE = Path(__file__).parent.parent
PICTURES, SIDE = 300, 256
LOAD = """
import gc, json, time
from ic_jax import InstantCharacterPipeline
gc.collect()  # of what the imports left; else chance decides whether it falls into the loading
begin = time.perf_counter(), time.process_time()
InstantCharacterPipeline.from_pretrained(dtype="float32")
end = time.perf_counter(), time.process_time()
print(json.dumps([b - a for a, b in zip(begin, end)]))
"""
Seconds = tuple[float, float]  # of wall and of processor time


class Commands(Checkout):
    """Commands of a checkout that are measured."""

    def __init__(self, root: Path, folder: Path, pictures: Path):
        super().__init__(root, folder)
        self.pictures = pictures

    def first_picture(self) -> Seconds:
        return self.timed("-m", "infer", "--out", self.folder / "out.png", "--overwrite")

    def load(self) -> Seconds:
        self.timed("-c", LOAD)
        wall, processor = json.loads(self.log.read_text().splitlines()[-1])
        return wall, processor

    def training_step(self) -> Seconds:
        file = self.folder / "bench.json"
        options = ("--size", "toy", "--samples", "30", "--set", "dtype=float32")
        self.timed("-m", "train", "bench", *options, "--json", file)
        step = json.loads(file.read_text())["parts"]["batch 1"]["result"]["step"]
        return step["ms"] / 1000, float("nan")

    def prepare(self) -> Seconds:
        shutil.rmtree(out := self.folder / "data", ignore_errors=True)
        options = ("--resolution", str(SIDE), "--workers", "1")
        return self.timed("-m", "train", "prepare", self.pictures, "--out", out, *options)


PROGRAMS: dict[str, Callable[[Commands], Seconds]] = {
    "first picture": Commands.first_picture,
    "load": Commands.load,
    "prepare": Commands.prepare,
    "training step": Commands.training_step,
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
    only = "programs to run, by default all"
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=[*PROGRAMS], help=only)
    args = parser.parse_args()
    file = Path(__file__).with_suffix(".json")
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures")
        pictures = Path(folder) / "pictures"
        checkouts = [
            Commands(args.earlier.resolve(), Path(folder) / "earlier", pictures),
            Commands(HERE, Path(folder) / "here", pictures),
        ]
        results = json.loads(file.read_text()) if file.exists() else {}
        for name in args.only:
            results[name] = {
                **measure(PROGRAMS[name], checkouts, args.rounds),
                "rounds": args.rounds,
                "earlier": commit_of(args.earlier),
                **origin("jax", "jaxlib", "flax"),
            }
            print(name, json.dumps(results[name]), flush=True)
            write_json(file, results)


def measure(
    run: Callable[[Commands], Seconds], checkouts: list[Commands], rounds: int
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
