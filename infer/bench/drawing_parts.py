"""Parts of a benchmark that draw: weights, a step, its kernels, compiler options, a picture."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from ic_jax import sampler
from ic_jax.devices import platform
from ic_jax.measuring.kernel_profile import profile
from ic_jax.measuring.parts import Budget, one_line
from ic_jax.measuring.timing import (
    Timing,
    compiled,
    peak_gigabytes,
    rates,
    round_to,
    sample,
    timed,
)
from infer.bench.device_parts import nvidia_smi
from infer.bench.drawing import Drawing

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # options of XLA's compiler, by platform
    "gpu": {
        "products by cuBLAS alone": {"xla_gpu_enable_triton_gemm": False},
        "no joined products": {"xla_gpu_dot_merger_threshold_mb": 0},
        "both": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0},
        "no command buffers": {"xla_gpu_enable_command_buffer": ""},
        "slices within fusions": {
            "xla_gpu_enable_dynamic_slice_fusion": True,
            "xla_gpu_dot_merger_threshold_mb": 0,
        },
    },
    "tpu": {"more VMEM for a kernel": {"xla_tpu_scoped_vmem_limit_kib": 65536}},
    "cpu": {"fast min and max": {"xla_cpu_enable_fast_min_max": True}},
}
VARIANT_SECONDS = 60.0  # that compiling and timing one takes at most


def weights(drawing: Drawing) -> dict[str, Any]:
    """Return how long the random weights take to make, and their size."""
    start = time.perf_counter()
    leaves = jax.tree.leaves(drawing.models)
    seconds = time.perf_counter() - start
    return {
        "s": round_to(seconds),
        "parameters": sum(x.size for x in leaves),
        "GB": round_to(sum(x.nbytes for x in leaves) / 1e9),
        "peak GB": peak_gigabytes(),
    }


def prepare_and_step(drawing: Drawing) -> dict[str, Any]:
    """Return times of what is done once for all steps, and of one step."""
    arguments = (*drawing.models, drawing.request)
    prepare = drawing.prepare
    drawing.conditioning  # noqa: B018  # runs it for the first time
    once = timed(lambda: prepare.run(*arguments), drawing.settings.samples)
    finite = bool(jnp.isfinite(drawing.run_step()).all())
    step = timed(drawing.run_step, drawing.settings.samples)
    return {
        "prepare": once.to_dict() | prepare.to_dict(),
        "step": step.to_dict() | rates(drawing.step_flops, step.median) | drawing.step.to_dict(),
        "finite": finite,
        "peak GB": peak_gigabytes(),
        "nvidia-smi": nvidia_smi(),  # at once: whether it is hot or throttled
    }


def step_profile(drawing: Drawing) -> dict[str, Any]:
    """Return the time of one step by kind of kernel."""
    drawing.run_step().block_until_ready()
    return profile(drawing.run_step)


def variants(drawing: Drawing, budget: Budget, reserve: float) -> dict[str, Any]:
    """Return times of the step under other options of the compiler; the usual ones again at last.

    Args:
        reserve: seconds of the budget that later parts need.
    """
    entries: dict[str, Any] = {}
    for name, options in VARIANTS[platform(jax.devices()[0])].items():
        if budget.left < VARIANT_SECONDS + reserve:
            entries[name] = {"skipped": f"{budget.left:.0f} s left"}
            continue
        try:
            entries[name] = _variant(drawing, options)
        except Exception as error:
            entries[name] = {"failed": one_line(error)}
    again = timed(drawing.run_step, drawing.settings.samples)
    return entries | {"the usual ones again": again.to_dict()}


def _variant(drawing: Drawing, options: dict[str, Any]) -> dict[str, Any]:
    arguments = drawing.step_arguments
    program = compiled(sampler.step, *arguments, options=options)
    program.run(*arguments).block_until_ready()
    times = timed(lambda: program.run(*arguments), drawing.settings.samples)
    return times.to_dict() | program.to_dict()


def picture(drawing: Drawing) -> dict[str, Any]:
    """Return the time of all steps as one program, without encoders and VAE."""
    arguments = (*drawing.models, drawing.request)
    program = compiled(sampler.sample, *arguments)
    finite = bool(jnp.isfinite(program.run(*arguments)).all())
    samples = max(2, drawing.settings.samples // 2)
    times = Timing(tuple(sample(lambda: program.run(*arguments), 1) for _ in range(samples)))
    steps, batch = drawing.settings.steps, drawing.settings.batch
    return {
        "s a picture": round_to(times.median / batch),
        "steps": steps,
        "all": times.to_dict() | rates(steps * drawing.step_flops, times.median),
        "program": program.to_dict(),
        "finite": finite,
        "peak GB": peak_gigabytes(),
    }
