"""Peak memory and time of converting synthetic models of about 3 GB.

    python -m benchmarks.convert_memory [--scratch DIR] [CASE ...]

Real widths, few blocks, random values: folders of diffusers and transformers in bfloat16 (there and
back), and FLUX.1 as Black Forest Labs name it in GGUF (Q8_0, Q4_K) and in scaled fp8. A command
runs in a process of its own, which reports its peak resident memory above what it had before it
opened a file; mapped pages of the files count. `copying_seconds` is the time of reading as many
bytes as the source has, from a cold page cache, and of writing as many as the result. Writes
convert_memory.json beside this script; cases that are not named keep their figures.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert import bfl
from convert.configs import to_published
from convert.names import published_shapes, slots
from ic_jax.config import CONFIGS, FLUX_DEV, T5Config
from ic_jax.measuring.origin import origin
from ic_jax.weights.safetensors_io import Spec, write_tensors
from ic_jax.weights.tensors import FLOATS, Shape

ROOT = Path(__file__).parent.parent
REPORT = Path(__file__).with_suffix(".json")
COMPONENTS = {
    "transformer": replace(FLUX_DEV, num_layers=2, num_single_layers=4),
    "t5": T5Config.from_dict(CONFIGS["t5-xxl"].to_dict() | {"num_layers": 2}),
}
STEMS = {"transformer": "diffusion_pytorch_model", "t5": "model"}
# 3 GB in 8 bits a weight; half of it in Q4_K.
QUANTISED = replace(FLUX_DEV, num_layers=5, num_single_layers=8)
BF16, FP8 = FLOATS["BF16"], FLOATS["F8_E4M3"]
CHUNK = 1 << 24
CHILD = """
import json, os, sys, time
from convert.commands import main

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # VmHWM counts from here
start = time.perf_counter()
status = main(sys.argv[1:])
seconds = time.perf_counter() - start
processor = sum(os.times()[:2])
peak = resident("VmHWM")
print(json.dumps({"before": before, "peak": peak, "seconds": seconds, "processor": processor}))
sys.exit(status)
"""


def folders(scratch: Path) -> list[str]:
    """Write folders of FLUX and T5 in bfloat16, tensor by tensor; return `from-torch`'s options."""
    rng = np.random.default_rng(0)
    for kind, config in COMPONENTS.items():
        shapes = published_shapes(slots(kind, config))
        specs = {name: Spec(BF16, shape) for name, shape in shapes.items()}
        target = scratch / kind
        target.mkdir()

        def random(name: str, shapes: dict[str, Shape] = shapes) -> list[np.ndarray]:
            return [rng.standard_normal(shapes[name], np.float32).astype(BF16)]

        write_tensors(target, STEMS[kind], specs, random, shard_bytes=10**12)
        (target / "config.json").write_text(json.dumps(to_published(kind, config)))
    return ["--flux", str(scratch / "transformer"), "--t5", str(scratch / "t5")]


def bfl_shapes() -> dict[str, Shape]:
    """Return the tensors of a quantised file of FLUX, under Black Forest Labs' names."""
    shapes = published_shapes(slots("transformer", QUANTISED))
    return {name: fused.shape for name, fused in bfl.layout("transformer", shapes).items()}


def scaled_fp8(scratch: Path) -> list[str]:
    """Write FLUX as ComfyUI's scaled fp8: matrices of 8 bits, each with a scale."""
    rng = np.random.default_rng(0)
    specs = {}
    for name, shape in bfl_shapes().items():
        specs[name] = Spec(FP8 if len(shape) == 2 else BF16, shape)
        if len(shape) == 2:
            scale = name.removesuffix("weight") + "scale_weight"
            specs[scale] = Spec(np.dtype(np.float32), ())

    def random(name: str) -> list[np.ndarray]:
        spec = specs[name]
        if not spec.shape:
            return [np.array(0.01, np.float32)]
        if spec.dtype != FP8:
            return [rng.standard_normal(spec.shape, np.float32).astype(BF16)]
        values = rng.integers(0, 256, spec.shape, np.uint8)
        values[(values & 0x7F) == 0x7F] = 0  # NaN
        return [values.view(FP8)]

    write_tensors(scratch, "flux", specs, random, shard_bytes=10**12)
    return ["--flux", str(scratch / "flux.safetensors")]


def gguf_of(kind: str) -> Callable[[Path], list[str]]:
    """Return a function that writes FLUX as GGUF, matrices in the format `kind`."""

    def write(scratch: Path) -> list[str]:
        import gguf

        rng = np.random.default_rng(0)
        format_ = gguf.GGMLQuantizationType[kind]
        values, size = gguf.GGML_QUANT_SIZES[format_]
        halves = {"Q8_0": 1, "Q4_K": 2}[kind]  # a block begins with so many float16 scales
        file = scratch / "flux.gguf"
        writer = gguf.GGUFWriter(file, "flux", use_temp_file=False)
        shapes = bfl_shapes()
        for name, shape in shapes.items():
            quantised = len(shape) == 2 and not shape[1] % values
            stored = (shape[0], shape[1] // values * size) if quantised else shape
            dtype = np.dtype(np.uint8 if quantised else np.float32)
            nbytes = math.prod(stored) * dtype.itemsize
            writer.add_tensor_info(
                name, stored, dtype, nbytes, raw_dtype=format_ if quantised else None
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for shape in shapes.values():
            if len(shape) != 2 or shape[1] % values:
                array = rng.standard_normal(shape, np.float32)
            else:
                array = rng.integers(0, 256, (math.prod(shape) // values, size), np.uint8)
                array[:, : 2 * halves] = np.full(halves, 0.01, np.float16).view(np.uint8)
            writer.write_tensor_data(array)
        writer.close()
        return ["--flux", str(file)]

    return write


CASES: dict[str, Callable[[Path], list[str]]] = {
    "bfloat16": folders,
    "GGUF Q8_0": gguf_of("Q8_0"),
    "GGUF Q4_K": gguf_of("Q4_K"),
    "scaled fp8": scaled_fp8,
}


def files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it."""
    return (path for path in folder.rglob("*") if path.is_file())


def evict(folder: Path) -> None:
    """Drop the pages of the files from the page cache."""
    for path in files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copying(source: Path, nbytes: int, target: Path) -> float:
    """Return the seconds of reading all files of a folder and writing `nbytes`."""
    evict(source)
    start = time.perf_counter()
    buffer = bytearray(CHUNK)
    for path in files(source):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with target.open("wb", buffering=0) as file:
        for position in range(0, nbytes, CHUNK):
            file.write(memoryview(buffer)[: min(CHUNK, nbytes - position)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def measure(source: Path, result: Path, *arguments: str) -> dict[str, float]:
    """Run a command that makes `result` of `source`; return its memory and seconds."""
    evict(source)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    usage = json.loads(done.stdout.splitlines()[-1])
    written = sum(path.stat().st_size for path in files(result))
    evict(result)
    return {
        "source_bytes": sum(path.stat().st_size for path in files(source)),
        "result_bytes": written,
        "interpreter_bytes": usage["before"],
        "peak_above_interpreter_bytes": usage["peak"] - usage["before"],
        "seconds": round(usage["seconds"], 1),
        "processor_seconds": round(usage["processor"], 1),
        "copying_seconds": round(copying(source, written, result.with_suffix(".copy")), 1),
    }


def run(case: str, scratch: Path) -> dict[str, dict[str, float]]:
    """Return the figures of a case by direction; only folders are converted back."""
    source, model, back = (scratch / name for name in ("source", "MODEL", "back"))
    source.mkdir()
    options = CASES[case](source)
    runs = {"from-torch": measure(source, model, "from-torch", *options, "--out", str(model))}
    if case == "bfloat16":
        runs["to-torch"] = measure(model, back, "to-torch", str(model), "--out", str(back))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", help=f"of {', '.join(CASES)}; by default all")
    parser.add_argument("--scratch", help="folder with 16 GB free")
    args = parser.parse_args()
    runs = json.loads(REPORT.read_text())["runs"] if REPORT.is_file() else {}
    for case in args.case or CASES:
        with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
            measured = run(case, Path(scratch))
        runs[case] = {
            direction: figures | origin("jax", "numpy", "ml_dtypes", "gguf")
            for direction, figures in measured.items()
        }
        print(case, json.dumps(measured, indent=2), flush=True)
        REPORT.write_text(json.dumps({"runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
