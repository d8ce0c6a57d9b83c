"""Parts of a benchmark that need no model: the machine, and its ceilings."""

import os
import subprocess
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ic_jax.devices import Chip, platform
from ic_jax.measuring.parts import tried
from ic_jax.measuring.random_weights import random_like
from ic_jax.measuring.timing import compiled, rates, round_to, timed
from infer.bench.drawing import Drawing

SMI = (
    "name,memory.total,driver_version,clocks.max.sm,power.limit,"
    "clocks.sm,power.draw,temperature.gpu"
)


def machine() -> dict[str, Any]:
    """Return what the machine is."""
    device = jax.devices()[0]
    chip, stats = Chip.of(device), device.memory_stats() or {}
    cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return {
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "platform": platform(device),
        "compute capability": getattr(device, "compute_capability", None),
        "memory limit": stats.get("bytes_limit"),
        "peak TFLOP/s": chip and chip.flops / 1e12,
        "peak GB/s": chip and chip.bandwidth / 1e9,
        "nvidia-smi": nvidia_smi(),
        "libraries": _cuda_libraries() if platform(device) == "gpu" else None,
        "cores": _cores(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "compilation cache": cache,  # with one, compile times are those of reading it
    }


def _cores() -> list[int] | None:
    """Return the cores that this process may use (`taskset` chooses them), where Linux says it."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def nvidia_smi() -> str | None:
    """Return what the driver says of the GPU now: clocks, power and temperature; None without."""
    command = ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def _cuda_libraries() -> dict[str, int] | None:
    """Return the versions of CUDA's libraries; None where JAX does not say them."""
    try:
        from jax._src.lib import cuda_versions

        libraries: Any = cuda_versions  # None without jax's CUDA plugin
        return {
            "cudnn": libraries.cudnn_get_version(),
            "cublas": libraries.cublas_get_version(),
            "driver": libraries.cuda_driver_get_version(),
        }
    except Exception:  # JAX promises none of these names
        return None


def ceilings(drawing: Drawing) -> dict[str, Any]:
    """Return the speed of plain products, of those of the model's shapes, and of memory."""
    on_cpu = platform(jax.devices()[0]) == "cpu"
    side, length = (1024, 2**24) if on_cpu else (8192, 2**30)
    config, s = drawing.configs["transformer"], drawing.settings
    d, rows = config.hidden_size, s.batch * (drawing.image_tokens + s.text_length)
    shapes = {"square": (side, side, side)}
    for name, columns in {"to_q": d, "qkv": 3 * d, "mlp": 4 * d, "qkv and mlp": 7 * d}.items():
        shapes[name] = rows, d, columns
    shapes["proj_out"] = rows, 5 * d, d
    cases = {name: partial(_product, *shape, drawing) for name, shape in shapes.items()}
    cases["memory"] = partial(_memory, length, drawing)
    return {name: tried(case) for name, case in cases.items()}


def _memory(length: int, drawing: Drawing) -> dict[str, Any]:
    x = _normal("memory", length, dtype=drawing.dtype)
    add = compiled(lambda x: x + jnp.ones((), x.dtype), x)
    time = timed(lambda: add.run(x), drawing.settings.samples)
    rate = round_to(2 * x.nbytes / time.median / 1e9)
    return {"GB/s read and written": rate} | time.to_dict()


def _product(n: int, k: int, m: int, drawing: Drawing) -> dict[str, Any]:
    a, b = _normal("a", n, k, dtype=drawing.dtype), _normal("b", k, m, dtype=drawing.dtype)
    product = compiled(jnp.matmul, a, b)
    time = timed(lambda: product.run(a, b), drawing.settings.samples)
    return {"shape": f"{n} x {k} x {m}"} | rates(2.0 * n * k * m, time.median) | time.to_dict()


def _normal(name: str, *shape: int, dtype: Any) -> Array:
    return random_like(jax.ShapeDtypeStruct(shape, dtype), name)
