"""Profile of a program by kind of kernel, from JAX's profiler."""

import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from ic_jax.devices import platform
from ic_jax.measuring.timing import round_to

KINDS = {  # the first whose pattern is in a kernel's name
    "attention": r"fmha|flash|sdpa|cudnn|splash|mha_",
    "collectives": r"nccl|all[-_]?(gather|reduce|to[-_]?all)|reduce[-_]scatter|permute",
    "products": r"gemm|cublas|nvjet|cutlass|xmma|dot|convolution|\bconv(?!ert)|matmul|onednn|ynn",
    "copies": r"copy|memcpy|memset|slice|concat|transpose|bitcast|dynamic-update|pad",
}
OTHERS = "other fusions"
LINES = {"gpu": "Stream", "tpu": "XLA Ops", "cpu": ""}  # of the profile, with kernels
LOOP = re.compile(r"(while|conditional|call)(\.\d+)?$")  # what is in them is listed as well
TOP = 25  # kernels that are listed


def profile(call: Callable[[], Any], calls: int = 2) -> dict[str, Any]:
    """Return milliseconds a call by kind of kernel, and the kernels that take longest.

    `call` was made before. Kernels of one device that run at the same time are counted in full.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    times: dict[str, tuple[float, int]] = {}
    for name, nanoseconds in _kernels(data):
        total, count = times.get(name, (0.0, 0))
        times[name] = total + nanoseconds / calls / 1e6, count + 1
    kinds = dict.fromkeys([*KINDS, OTHERS], 0.0)
    for name, (milliseconds, _) in times.items():
        kinds[kind_of(name)] += milliseconds
    longest = sorted(times.items(), key=lambda item: -item[1][0])[:TOP]
    return {
        "ms": {kind: round_to(x) for kind, x in kinds.items()},
        "ms of all": round_to(sum(kinds.values())),
        "kernels": sum(count for _, count in times.values()) // calls,
        "longest": [
            {"kernel": name[:100], "kind": kind_of(name), "ms": round_to(x), "calls": n // calls}
            for name, (x, n) in longest
        ],
    }


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel, by its name."""
    patterns = KINDS.items()
    return next((kind for kind, text in patterns if re.search(text, kernel, re.I)), OTHERS)


def _kernels(data: Any) -> Iterable[tuple[str, float]]:
    """Yield name and nanoseconds of each kernel of the first device."""
    where = platform(jax.devices()[0])
    for plane in data.planes:
        if where == "cpu" and plane.name != "/host:CPU":
            continue
        if where != "cpu" and not re.fullmatch(rf"/device:{where}:0.*", plane.name, re.I):
            continue
        for line in plane.lines:
            # Other lines repeat the same time, by module, step or operation.
            if not line.name.startswith(LINES[where]):
                continue
            for event in line.events:
                if where == "cpu" and all(key != "hlo_op" for key, _ in event.stats):
                    continue
                name = event.name.partition(" = ")[0].removeprefix("%")
                if not LOOP.match(name):
                    yield name, event.duration_ns
