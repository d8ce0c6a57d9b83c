"""Peak memory of converting a synthetic model of about 3 GB.

    python -m benchmarks.convert_memory [--scratch DIR]

Real widths, few blocks: FLUX.1-dev with two double and four single blocks and T5-XXL with two,
in bfloat16, random values. Each direction runs in a process of its own, which reports its peak
resident memory above what it had before it opened a file; mapped pages of the files count.
Writes convert_memory.json beside this script.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert.configs import to_published
from convert.names import published_shapes, slots
from ic_jax.config import CONFIGS, FLUX_DEV, T5Config
from ic_jax.measuring.origin import origin
from ic_jax.weights.safetensors_io import Spec, write_tensors
from ic_jax.weights.tensors import FLOATS

ROOT = Path(__file__).parent.parent
LIMIT = 1.5e9
COMPONENTS = {
    "transformer": replace(FLUX_DEV, num_layers=2, num_single_layers=4),
    "t5": T5Config.from_dict(CONFIGS["t5-xxl"].to_dict() | {"num_layers": 2}),
}
STEMS = {"transformer": "diffusion_pytorch_model", "t5": "model"}
CHILD = """
import json, sys, time
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
print(json.dumps({"before": before, "peak": resident("VmHWM"), "seconds": seconds}))
sys.exit(status)
"""


def synthesise(folder: Path) -> int:
    """Write the published form, tensor by tensor, and return its bytes."""
    rng = np.random.default_rng(0)
    dtype, total = FLOATS["BF16"], 0
    for kind, config in COMPONENTS.items():
        specs = {
            name: Spec(dtype, shape)
            for name, shape in published_shapes(slots(kind, config)).items()
        }
        target = folder / kind
        target.mkdir()

        def random(name: str, specs: dict[str, Spec] = specs) -> list[np.ndarray]:
            return [rng.standard_normal(specs[name].shape, np.float32).astype(dtype)]

        write_tensors(target, STEMS[kind], specs, random, shard_bytes=10**12)
        (target / "config.json").write_text(json.dumps(to_published(kind, config)))
        total += sum(spec.nbytes for spec in specs.values())
    return total


def measure(*arguments: str) -> dict[str, float]:
    """Run a command in a new process; return its peak memory above its start, and seconds."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    return {
        "interpreter_bytes": result["before"],
        "peak_above_interpreter_bytes": result["peak"] - result["before"],
        "seconds": round(result["seconds"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", help="folder with 10 GB free")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        source, model = Path(scratch) / "source", Path(scratch) / "MODEL"
        source.mkdir()
        size = synthesise(source)
        sources = ("--flux", str(source / "transformer"), "--t5", str(source / "t5"))
        runs = {
            "from-torch": measure("from-torch", *sources, "--out", str(model)),
            "to-torch": measure("to-torch", str(model), "--out", str(Path(scratch) / "back")),
        }
    report = {
        "model_bytes": size,
        "limit_bytes": int(LIMIT),
        "runs": runs,
        **origin("jax", "flax", "numpy", "ml_dtypes"),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    for name, run in runs.items():
        if run["peak_above_interpreter_bytes"] > LIMIT:
            sys.exit(f"error: {name} took more than {LIMIT / 1e9} GB")


if __name__ == "__main__":
    main()
