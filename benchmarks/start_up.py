"""Loading the published model's files: this checkout beside an earlier one.

    git worktree add EARLIER e41b38d
    python -m benchmarks.start_up EARLIER [--repeats 3] [--scratch DIR]

Two MODEL folders are written to DIR, bfloat16, in files as `convert` writes them:

- sparse: every component at its published size, 42.4 GB, of holes. Reading a hole costs what
  reading from the page cache does, and no disk, so that what is left is the loader's own time.
- disk: the components of DISK, 3.5 GB of random bytes, which are put out of the page cache before
  every load. `read` is the time that the disk takes: eight threads read the files and do nothing.

Every load is a fresh process with eight CPU devices and the mesh tensor=8, checksums compared. An
array is freed once its devices hold it, because few machines have 42 GB. The checkouts take turns.
`wall` and `processor` are seconds of `load_model`, the latter of all threads; `busiest` is the
processor time of the thread that has most of it, below which no number of cores gets the wall time.
There are as many threads as on a machine of 16 cores. Writes start_up.json beside this script.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ic_jax import auto_mesh
from ic_jax.config import CONFIGS
from ic_jax.files import sha256_file, write_json
from ic_jax.measuring.origin import commit_of, origin
from ic_jax.weights.loading import parameters
from ic_jax.weights.model_folder import FORMAT, MANIFEST, SHARD_BYTES
from ic_jax.weights.tensors import FLOATS

HERE = Path(__file__).parent.parent
DISK = ("dinov2", "siglip", "clip", "vae")
CHUNK = 1 << 24
CHILD = """
import json, os, sys, threading, time
os.cpu_count = lambda: 16  # what concurrent.futures asks
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from ic_jax.sharding import make_mesh, parse
from ic_jax.weights import loading

to_devices = loading.to_global_array

def drop(*arguments):
    array = jax.block_until_ready(to_devices(*arguments))
    array.delete()
    return np.zeros(())

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def threads():
    for thread in os.listdir("/proc/self/task"):
        try:
            fields = open(f"/proc/self/task/{thread}/stat").read().rpartition(")")[2].split()
            yield thread, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass  # it has ended

def watch():
    while True:
        time.sleep(0.05)
        peak[0] = max(peak[0], anonymous())
        busy.update(threads())

loading.to_global_array = drop
mesh, before = make_mesh(parse("tensor=8")), anonymous()
peak, busy, at_start = [before], {}, dict(threads())
threading.Thread(target=watch, daemon=True).start()
wall, processor = time.perf_counter(), time.process_time()
loading.load_model(sys.argv[1], "bfloat16", mesh=mesh)
busy.update(threads())
print(json.dumps({
    "wall": time.perf_counter() - wall,
    "processor": time.process_time() - processor,
    "busiest": max(seconds - at_start.get(thread, 0) for thread, seconds in busy.items()),
    "peak_gb": (peak[0] - before) / 1e9,
}))
"""


def write_published(folder: Path, components: tuple[str, ...], *, random: bool) -> None:
    """Write a MODEL folder of the published shapes, of random bytes or of holes."""
    shutil.rmtree(folder, ignore_errors=True)
    modules, dtype = auto_mesh.published(np.float32), FLOATS["BF16"]
    for component in components:
        (folder / component).mkdir(parents=True)
        config = CONFIGS[auto_mesh.PUBLISHED[component]]
        write_json(folder / component / "config.json", config.to_dict())
        shapes = {path: v.shape for path, v in parameters(modules[component]).items()}
        shards = _shards({path: int(np.prod(s)) * dtype.itemsize for path, s in shapes.items()})
        for number, sizes in enumerate(shards):
            _write_file(folder / component / f"model-{number}.safetensors", shapes, sizes, random)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor() as pool:
        digests = pool.map(sha256_file, files)
    manifest: dict[str, Any] = {"format": FORMAT, "components": {}}
    for path, digest in zip(files, digests, strict=True):
        entries = manifest["components"].setdefault(path.parent.name, {})
        entries[path.name] = {"size": path.stat().st_size, "sha256": digest}
    write_json(folder / MANIFEST, manifest)


def _shards(sizes: dict[str, int]) -> list[dict[str, int]]:
    shards: list[dict[str, int]] = [{}]
    for path, size in sizes.items():
        if shards[-1] and sum(shards[-1].values()) + size > SHARD_BYTES:
            shards.append({})
        shards[-1][path] = size
    return shards


def _write_file(
    path: Path, shapes: dict[str, tuple[int, ...]], sizes: dict[str, int], random: bool
) -> None:
    header, end = {}, 0
    for name, size in sizes.items():
        offsets = [end, end := end + size]
        header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": offsets}
    raw = json.dumps(header).encode()
    raw += b" " * (-(8 + len(raw)) % 64)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for start in range(0, end, CHUNK) if random else ():
            file.write(os.urandom(min(CHUNK, end - start)))
        file.truncate(8 + len(raw) + end)
        os.fsync(file.fileno())


def _files(folder: Path) -> Iterator[Path]:
    return folder.rglob("*.safetensors")


def forget(folder: Path) -> None:
    """Put a folder's files out of the page cache."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(folder: Path) -> float:
    """Return the seconds in which eight threads read the files."""

    def read_file(path: Path) -> None:
        buffer = bytearray(CHUNK)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):  # type: ignore[attr-defined]
                pass

    start = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_file, _files(folder)))
    return time.perf_counter() - start


def load(root: Path, folder: Path) -> dict[str, float]:
    """Load a folder with the code of a checkout, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        cwd=root,
        # Both checkouts may be installed as ic_jax; this one comes first.
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(roots: dict[str, Path], folder: Path, repeats: int, *, cold: bool) -> dict[str, Any]:
    """Return the medians of loads by each checkout, in turn, and of reading from the disk."""
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        if cold:
            forget(folder)
            runs.setdefault("read", []).append({"wall": read(folder)})
        for name, root in roots.items():
            if cold:
                forget(folder)
            runs.setdefault(name, []).append(load(root, folder))
            print(folder.name, name, runs[name][-1], flush=True)
    return {
        name: {key: round(statistics.median(run[key] for run in taken), 2) for key in taken[0]}
        for name, taken in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("earlier", type=Path, help="folder of the earlier checkout")
    parser.add_argument("--repeats", type=int, default=3, help="loads of each kind")
    parser.add_argument("--scratch", type=Path, help="folder for the two MODEL folders")
    args = parser.parse_args()
    roots = {"earlier": args.earlier.resolve(), "here": HERE}
    report: dict[str, Any] = {"repeats": args.repeats, "earlier": commit_of(args.earlier)}
    report |= origin("jax", "jaxlib")
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for name, components in (("disk", DISK), ("sparse", tuple(auto_mesh.PUBLISHED))):
            folder = Path(scratch, name)
            write_published(folder, components, random=name == "disk")
            report[name] = {
                "gb": round(sum(path.stat().st_size for path in _files(folder)) / 1e9, 2),
                "seconds": measure(roots, folder, args.repeats, cold=name == "disk"),
            }
            shutil.rmtree(folder)
            Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
