"""Memory of `python -m train prepare`: what a picture of the source adds to it.

    python -m benchmarks.prepare_memory

The source is synthetic: a list of metadata in the usual layout, whose pictures are empty files. No
picture is decoded and no record is of its real size, neither of which stays in memory; entries,
notes, index and card are the real ones. Memory is that of the process that hands out the work,
compared between two numbers of pictures. Writes benchmarks/prepare_memory.json.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.data_at_scale import PICTURES_OF_A_CHARACTER, clocked
from ic_jax.measuring.origin import origin
from train.data import prepare, shards
from train.data.ingest import Ingested
from train.data.options import PrepareOptions
from train.data.records import Record
from train.data.sources.entries import Entry

SIZES = (20_000, 220_000)  # pictures
OF_A_FOLDER = 1000
PACKAGES = ("array_record", "numpy", "tensorflow-datasets")


def write_source(folder: Path, size: int) -> None:
    """Write a list of `size` pictures, and empty files in their places."""
    with (folder / "metadata.jsonl").open("w") as file:
        for n in range(size):
            path = folder / f"{n // OF_A_FOLDER:06d}" / f"{n:09d}.png"
            if n % OF_A_FOLDER == 0:
                path.parent.mkdir()
            path.touch()
            caption = f"walking through street {n % 97} of an old town, seen from window {n}"
            line = {"file": path.relative_to(folder).as_posix(), "caption": caption}
            character = f"character-{n // PICTURES_OF_A_CHARACTER:09d}"
            file.write(json.dumps(line | {"character": character}) + "\n")


def preparing(folder: Path) -> dict[str, Any]:
    """Return the peak of memory, above that of the imports, and the time."""

    def ingest(root: Path, entry: Entry, resolution: int, min_side: int) -> Ingested:
        look = hashlib.sha512(entry.file.encode()).digest()
        values = (entry.caption, entry.character, "", "", entry.file, 512, 512)
        return Ingested(Record(look, b"", *values), False, look)

    shards.ingest, shards.serialize = ingest, lambda record: record.image  # type: ignore[attr-defined]
    imported = peak()
    source, out, options = folder / "source", folder / "data", PrepareOptions(max_bad=0.0)
    _, clock = clocked(lambda: prepare.prepare(source, out, options, workers=1))
    return clock | {"peak_bytes": peak() - imported}


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=SIZES, help="numbers of pictures")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(preparing(args.work)))
        return
    results: dict[str, Any] = {}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            (source := Path(temporary) / "source").mkdir()
            write_source(source, size)
            command = [sys.executable, "-m", "benchmarks.prepare_memory", "--work", temporary]
            output = subprocess.check_output(command, text=True)
            results[str(size)] = json.loads(output.splitlines()[-1])
            print(size, json.dumps(results[str(size)]), flush=True)
    small, large = (results[str(size)]["peak_bytes"] for size in args.sizes)
    results["bytes_a_picture"] = round((large - small) / (args.sizes[1] - args.sizes[0]))
    results |= origin(*PACKAGES)
    args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
