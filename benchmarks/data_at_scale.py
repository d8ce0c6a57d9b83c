"""Time and memory of a host that starts, resumes and reads with ten million records.

    python -m benchmarks.data_at_scale

The data set is synthetic and light on the disk: its 1250 shards are hard links to one file of 8000
tiny pictures, and only its index is of full size. Each figure is of a process of its own: start-up
is what `python -m train` does with the data before its first batch, with the plans of three stages.
Memory is split into what the process owns and what it maps of the index, which processes of one
machine share and the system can drop. Writes benchmarks/data_at_scale.json.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from ic_jax.measuring.origin import origin
from train.data import card
from train.data.characters import held_out
from train.data.dataset import Dataset
from train.data.hashing import hash_names
from train.data.loader import batches
from train.data.pictures import Augment
from train.data.records import Record, serialize
from train.data.shards import WRITER_OPTIONS, Shard
from train.recipe import recipe_of
from train.stage_data import stage_data

SHARDS, PER_SHARD = 1250, 8000
PICTURES_OF_A_CHARACTER = 3
BATCH, HOSTS, FAR = 1024, 16, 1_000_000  # rows, processes that share them, step to resume at
READ_STEPS = 8
PACKAGES = ("array_record", "grain", "numpy", "tensorflow-datasets")


def write_data(folder: Path, shards: int) -> None:
    """Write a data set of `shards` x 8000 records, all shards being one file."""
    first, size = folder / "shard", shards * PER_SHARD
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(picture, "PNG")
    record = serialize(Record(picture.getvalue(), b"", "walks", "c", "", "", "f", 16, 16))
    writer = ArrayRecordWriter(str(first), WRITER_OPTIONS)
    for _ in range(PER_SHARD):
        writer.write(record)
    writer.close()
    names = [f"characters-train.array_record-{n:05d}-of-{shards:05d}" for n in range(shards)]
    for name in names:
        os.link(first, folder / name)
    of_shard = (first.stat().st_size, range(PER_SHARD), [])
    card.write_metadata(folder, [Shard(name, "", "", *of_shard) for name in names])  # type: ignore[arg-type]
    _write_index(folder / card.INDEX, size)
    sizes = {path.name: path.stat().st_size for path in (folder / card.INDEX).iterdir()}
    listed = [
        {"file": name, "records": PER_SHARD, "bytes": of_shard[0], "sha256": "0" * 64}
        for name in names
    ]
    values = {"pictures": size, "index": sizes, "shards": listed}
    (folder / card.CARD).write_text(json.dumps(values))
    first.unlink()


def _write_index(folder: Path, size: int) -> None:
    folder.mkdir()
    rng, characters = np.random.default_rng(0), size // PICTURES_OF_A_CHARACTER
    sides = np.array([512, 576, 768, 1024], np.int32)
    np.save(folder / "character.npy", rng.integers(0, characters, size).astype(np.int32))
    for name in ("width", "height"):
        np.save(folder / f"{name}.npy", rng.choice(sides, size))
    names = [f"character-{n}" for n in range(characters)]
    (folder / "characters.json").write_text(json.dumps(names))
    np.save(folder / card.CHARACTER_HASH, hash_names(names))


def start(folder: Path) -> tuple[Dataset, Any]:
    """Open the data set and plan three stages, as a run does."""
    stage = {"steps": 10 * FAR, "batch": BATCH, "resolution": 512}
    stages = {f"stage{n}": stage | {"paired": p} for n, p in ((1, 0.0), (2, 1.0), (3, 0.5))}
    recipe = recipe_of({"model": "m", "data": str(folder), "out": "o", **stages})
    dataset = Dataset(folder)
    return dataset, stage_data(recipe, dataset, held_out(dataset, recipe.holdout))


def starting(folder: Path) -> dict[str, Any]:
    """Return what it takes until the plans of three stages stand."""
    imported = memory()["own_gb"]
    _, clock = clocked(lambda: start(folder))
    return clock | memory() | {"own_gb_of_imports": imported}


def resuming(folder: Path, stage: str, step: int) -> dict[str, Any]:
    """Return what the rows of a step take, once the plans stand, and those of the step after."""
    _, stages = start(folder)
    plan = stages[stage].training
    rows, clock = clocked(lambda: plan.rows(step))
    _, following = clocked(lambda: plan.rows(step + 1))
    figures = {"stage": stage, "step": step, "epoch": int(rows.epoch.max())}
    return figures | clock | {"next_step_ms": round(1e3 * following["seconds"], 1)} | memory()


def reading(folder: Path, stage: str) -> dict[str, Any]:
    """Return how fast one of 16 hosts reads its rows of a stage, of pictures of no size."""
    dataset, stages = start(folder)
    rows = range(0, BATCH, HOSTS)
    plan, stop = stages[stage].training, FAR + READ_STEPS + 1
    loader = batches(dataset, plan, Augment(), start=FAR, stop=stop, side=None, rows=rows)
    _, opening = clocked(lambda: next(loader))
    count, clock = clocked(lambda: sum(len(batch.record) for batch in loader))
    rate = round(count / clock["processor_seconds"])
    figures = {"stage": stage, "first_batch_s": opening["seconds"], "rows": count}
    shards = len(os.listdir("/proc/self/fd"))
    return figures | {"rows_per_processor_second": rate, "open_files": shards} | memory()


def clocked(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result, and the seconds by the wall and of processor time."""
    wall, used = time.perf_counter(), time.process_time()
    result = work()
    wall, used = time.perf_counter() - wall, time.process_time() - used
    return result, {"seconds": round(wall, 4), "processor_seconds": round(used, 4)}


def memory() -> dict[str, float]:
    """Return the GB that this process owns, that it maps of files, and its peak of both."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    fields = {"own_gb": "RssAnon", "mapped_gb": "RssFile", "peak_gb": "VmHWM"}
    kilobytes = {name: int(status[field].split()[0]) for name, field in fields.items()}
    return {name: round(value * 1024 / 1e9, 2) for name, value in kilobytes.items()}


WORKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "start": starting,
    **{
        f"resume {name} at {step}": lambda folder, name=name, step=step: resuming(
            folder, name, step
        )
        for name in ("stage1", "stage3")
        for step in (0, FAR)
    },
    "read stage1": lambda folder: reading(folder, "stage1"),
    "read stage3": lambda folder: reading(folder, "stage3"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=SHARDS, help="of 8000 records each")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(WORKS[args.work](args.data)))
        return
    results: dict[str, Any] = {
        "records": args.shards * PER_SHARD,
        "characters": args.shards * PER_SHARD // PICTURES_OF_A_CHARACTER,
        "batch": BATCH,
        "hosts": HOSTS,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder, args.shards)
        for work in WORKS:
            command = [sys.executable, "-m", "benchmarks.data_at_scale", "--work", work]
            output = subprocess.check_output([*command, "--data", str(folder)], text=True)
            results[work] = json.loads(output.splitlines()[-1])
            print(work, json.dumps(results[work]), flush=True)
    results |= origin(*PACKAGES)
    args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
