"""What a second `python -m infer` takes, with JAX's compilation cache and with programs as files.

    python -m benchmarks.second_start [--repeats 5]

Draws the small model's picture in fresh processes, both ways in turn, after a first one of each
that compiles. Cores may be shared with whatever else runs: beside the wall clock, the processor
time of the process is measured, and what JAX says it spent tracing, lowering, and compiling or
reading from its cache. Medians; writes second_start.json beside this script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.origin import origin

ROOT = Path(__file__).parent.parent
CHILD = """
import json, sys, time
start = time.perf_counter()
import jax
spent = {}
def listen(event, seconds, **_):
    spent[event] = spent.get(event, 0.0) + seconds
jax.monitoring.register_event_duration_secs_listener(listen)
from infer.commands import main
imported = time.perf_counter()
assert main(sys.argv[1:]) == 0
done = time.perf_counter()
compile = "/jax/core/compile/"
print(json.dumps({
    "importing": imported - start,
    "drawing, all of it": done - imported,
    "tracing": spent.get(compile + "jaxpr_trace_duration", 0.0),
    "lowering": spent.get(compile + "jaxpr_to_mlir_module_duration", 0.0),
    "compiling, or reading JAX's cache": spent.get(compile + "backend_compile_duration", 0.0),
    "processor": time.process_time(),
}))
"""


def once(way: str, folder: Path) -> dict[str, float]:
    """One start; seconds."""
    jax_keeps = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    by_jax = way == "JAX's compilation cache"
    environment = os.environ | {"XDG_CACHE_HOME": str(folder)} | (jax_keeps if by_jax else {})
    arguments = ["--out", str(folder / "out.png"), "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments, *(["--no-compile-cache"] if by_jax else [])],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    ways = ("JAX's compilation cache", "programs as files")
    found: dict[str, list] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = {way: once(way, folder) for way in ways}
        for _ in range(repeats):
            for way in ways:
                found[way].append(once(way, folder))

    def rounded(run: dict[str, float]) -> dict[str, float]:
        return {k: round(v, 2) for k, v in run.items()}

    report = {
        "seconds": {
            way: {
                "first start": rounded(first[way]),
                "second start, median": rounded(
                    {k: statistics.median(run[k] for run in runs) for k in runs[0]}
                ),
                "second start, from to": {
                    k: [round(f(run[k] for run in runs), 2) for f in (min, max)]
                    for k in ("drawing, all of it", "processor")
                },
            }
            for way, runs in found.items()
        },
        "repeats": repeats,
        **origin("jax", "jaxlib", "flax"),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
