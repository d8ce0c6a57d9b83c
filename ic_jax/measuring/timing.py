"""Times, memory and arithmetic of compiled programs."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from ic_jax.devices import Chip
from ic_jax.measuring.parts import one_line
from ic_jax.planning.hlo_cost import work_of

SHORTEST = 0.02  # seconds of a sample: short calls are repeated, for a launch takes 0.1 ms
MOST_CALLS = 50


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, sampled several times."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """Return median, extremes and number of the samples, as JSON values."""
        low, high = (round_to(1e3 * x) for x in (min(self.samples), max(self.samples)))
        ms = round_to(1e3 * self.median)
        return {"ms": ms, "lowest ms": low, "highest ms": high, "samples": len(self.samples)}


def timed(call: Callable[[], Any], samples: int, shortest: float = SHORTEST) -> Timing:
    """Time a call, after one that loads what it needs; samples last `shortest` seconds or more."""
    jax.block_until_ready(call())
    calls = calls_in_a_sample(call, shortest)
    return Timing(tuple(sample(call, calls) for _ in range(samples)))


def calls_in_a_sample(call: Callable[[], Any], shortest: float = SHORTEST) -> int:
    """Return how many calls make a sample long enough."""
    return max(1, min(MOST_CALLS, int(shortest / sample(call, 1))))


def sample(call: Callable[[], Any], calls: int) -> float:
    """Return the seconds of one of `calls` calls, which wait for each other on the device alone."""
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


@dataclass(frozen=True)
class Program:
    """Compiled program."""

    run: Any  # callable with the arguments that it was compiled for
    compile_seconds: float
    is_weight: Callable[[int], bool]  # of the number of an argument that it uses

    def to_dict(self) -> dict[str, Any]:
        """Return compile time, temporary memory and counted work, as JSON values."""
        memory = self.run.memory_analysis()
        temporary = None if memory is None else round_to(memory.temp_size_in_bytes / 1e9)
        values = {"compile s": round_to(self.compile_seconds), "temporary GB": temporary}
        try:
            work = work_of(self.run.as_text(), self.is_weight)
        except Exception as error:  # of a text that is written otherwise: times are worth more
            return values | {"not counted": one_line(error)}
        return values | {
            "counted TFLOP": round_to(work.flops / 1e12),
            "moved GB": round_to(work.bytes / 1e9),
            "copies of weights GB": round_to(work.weight_copies / 1e9),
            "calls": work.kernels,
        }


def compiled(
    function: Callable[..., Any],
    *arguments: Any,
    options: Mapping[str, Any] | None = None,
    **jit_options: Any,
) -> Program:
    """Compile a function for its arguments, with XLA's `options`."""
    start = time.perf_counter()
    lowered: Any = jax.jit(function, **jit_options).lower(*arguments)
    run = lowered.compile(compiler_options=dict(options) if options else None)
    leaves = jax.tree.leaves(arguments, is_leaf=lambda x: isinstance(x, nnx.Variable))
    weights = [isinstance(x, nnx.Variable) for x in leaves]  # a reference would keep them in memory
    used = sorted(lowered._lowering.compile_args["kept_var_idx"])
    return Program(
        run,
        compile_seconds=time.perf_counter() - start,
        is_weight=lambda number: weights[used[number]],
    )


def rates(flops: float, seconds: float) -> dict[str, Any]:
    """Return FLOPs and their rate, also as a share of the data sheet's peak for bfloat16."""
    chip = Chip.of(jax.devices()[0])
    rate = flops / seconds
    share = round_to(rate / chip.flops) if chip else None
    return {"TFLOP": round_to(flops / 1e12), "TFLOP/s": round_to(rate / 1e12), "of peak": share}


def peak_gigabytes() -> float:
    """Return the most memory that was in use: of the first device, or of the process on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return round_to(stats["peak_bytes_in_use"] / 1e9)
    unit = 1 if sys.platform == "darwin" else 1024
    return round_to(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9)


def round_to(value: float, digits: int = 4) -> float:
    """Round to significant digits, so that JSON files stay readable."""
    return float(f"{value:.{digits}g}")
