"""Samples per second that a machine's cores read, from a data set on disk to a batch.

    python -m benchmarks.data_reading

Pictures are synthetic 512 x 512 JPEGs with the spectrum of photographs, of the size that such
files have; references and targets are prepared as in training. Cores are shared with whatever
else runs: each figure is the best of several, and beside the wall clock the processor time is
measured, samples per second of which are what one free core reads. Writes
benchmarks/data_reading.json.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ic_jax.measuring.origin import origin
from train.data.batch_plan import BatchPlan
from train.data.dataset import Dataset
from train.data.loader import HostBatch, batches
from train.data.pictures import Augment, decode_pixels, prepare_reference, prepare_target
from train.data.prepare import PrepareOptions, prepare

SIDE, PICTURES, BATCH = 512, 512, 16
REPEATS = 12
PACKAGES = ("array_record", "grain", "numpy", "pillow", "tensorflow-datasets")


def photograph(seed: int) -> Image.Image:
    """Return noise whose amplitude falls with frequency as in photographs, with a little grain."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(SIDE)[:, None, None], np.fft.rfftfreq(SIDE)[None, :, None]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / SIDE) ** 1.2
    shared = rng.standard_normal((SIDE, SIDE, 1)) + 0.3 * rng.standard_normal((SIDE, SIDE, 3))
    field = np.fft.irfft2(np.fft.rfft2(shared, axes=(0, 1)) * amplitude, axes=(0, 1))
    pixels = 128 + 50 * field / field.std() + 2 * rng.standard_normal(field.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def source(folder: Path) -> Path:
    """Write pictures, four of each character, and return the JSON Lines file that lists them."""
    lines = []
    for n in range(PICTURES):
        photograph(n).save(folder / f"{n}.jpg", quality=90)
        lines.append({"file": f"{n}.jpg", "caption": "walks in a park", "character": str(n // 4)})
    path = folder / "pictures.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def clocked(work: Callable[[], int]) -> dict[str, float]:
    """Return the samples that `work` counts, per second and per second of processor time."""
    wall, before = time.perf_counter(), os.times()
    count = work()
    wall, after = time.perf_counter() - wall, os.times()
    used = sum(after[:4]) - sum(before[:4])
    return {
        "samples": count,
        "per_second": round(count / wall, 1),
        "per_core_second": round(count / used, 1),
        "cores_used": round(used / wall, 2),
    }


def reading(dataset: Dataset, paired: float, cores: int, steps: int) -> dict[str, float]:
    plan = BatchPlan(dataset, batch=BATCH, resolution=SIDE, paired=paired, seed=0)
    os.sched_setaffinity(0, range(cores))
    rates = []
    for start in range(0, REPEATS * steps, steps):
        stop = start + steps
        loader = batches(dataset, plan, Augment(), start=start, stop=stop, threads=2 * cores)
        next(loader)  # starts the threads
        rates.append(clocked(partial(drain, loader)))
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return {"paired": paired, "cores": cores} | max(rates, key=lambda each: each["per_second"])


def drain(loader: Iterator[HostBatch]) -> int:
    return sum(len(batch.record) for batch in loader)


def parts(dataset: Dataset, repeats: int = 100) -> dict[str, float]:
    """Return the milliseconds of processor time of each part of one sample."""
    record, rng = dataset.read(0), np.random.default_rng(0)
    picture = decode_pixels(record)
    works: dict[str, Callable[[int], Any]] = {
        "read": lambda n: dataset.read(n % PICTURES),
        "decode": lambda _: decode_pixels(record),
        "target": lambda _: prepare_target(picture, (SIDE, SIDE), Augment(), rng),
        "reference": lambda _: prepare_reference(picture, 384, Augment(), rng),
    }
    spent = {}
    for name, work in works.items():
        start = time.process_time()
        for n in range(repeats):
            work(n)
        spent[name] = round(1e3 * (time.process_time() - start) / repeats, 2)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="batches of 16 for each figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        named, out = source(folder), folder / "dataset"
        size = np.mean([path.stat().st_size for path in folder.glob("*.jpg")])

        def preparing() -> int:
            prepare(named, out, PrepareOptions((SIDE,), shard_size=128), workers=1)
            return PICTURES

        prepared = clocked(preparing)
        dataset = Dataset(out)
        cores = sorted({1, os.cpu_count() or 1})
        figures = [reading(dataset, p, c, args.steps) for c in cores for p in (0.0, 1.0)]
        results = {
            "what": f"{PICTURES} JPEGs of {SIDE} x {SIDE}, {size / 1e3:.0f} kB on average",
            "prepare": prepared,
            "read": figures,
            "milliseconds_of_a_sample": parts(dataset),
        }
    results |= origin(*PACKAGES)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
