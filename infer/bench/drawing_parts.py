"""Parts of a benchmark that draw: weights, a step, its kernels, compiler options, a picture."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ic_jax import sampler
from ic_jax.measuring.kernel_profile import profile
from ic_jax.measuring.parts import Budget, tried
from ic_jax.measuring.timing import Timing, peak_gigabytes, rates, round_to, sample, timed
from ic_jax.models.target import platform
from infer.bench.device_parts import nvidia_smi
from infer.bench.drawing import Drawing

# Other options of XLA than those that the pipeline draws with, by platform.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "gpu": {
        "products by cuBLAS alone": {"xla_gpu_enable_triton_gemm": False},
        "joined products": {"xla_gpu_dot_merger_threshold_mb": 32},  # XLA's default
        "no command buffers": {"xla_gpu_enable_command_buffer": ""},
        "products by cuDNN as well": {"xla_gpu_cudnn_gemm_fusion_level": 2},
    },
    "tpu": {"more VMEM for a kernel": {"xla_tpu_scoped_vmem_limit_kib": 65536}},
    "cpu": {"fast min and max": {"xla_cpu_enable_fast_min_max": True}},
}
VARIANT_SECONDS = 30.0  # that compiling and timing one takes at most
FEW_BLOCKS = (2, 4)  # so that all variants are compiled in a minute or two
QUEUED_SECONDS = 0.5  # of a sample of steps: they follow each other as in a picture


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
    prepare, arguments = drawing.prepare, (*drawing.models, drawing.request)
    drawing.result = np.asarray(drawing.run_step())
    once = timed(lambda: prepare.run(*arguments), drawing.settings.samples)
    step = timed(drawing.run_step, drawing.settings.samples, QUEUED_SECONDS)
    times = step.to_dict() | {"host ms": _host_ms(drawing)}
    return {
        "prepare": once.to_dict() | prepare.to_dict(),
        "step": times | rates(drawing.step_flops, step.median) | drawing.step.to_dict(),
        "finite": bool(np.isfinite(drawing.result).all()),
        "peak GB": peak_gigabytes(),
        "nvidia-smi": nvidia_smi(),  # at once: whether it is hot or throttled
    }


def _host_ms(drawing: Drawing) -> float:
    """Return the milliseconds until the call of a step returns, while the device computes."""
    start = time.perf_counter()
    result = drawing.run_step()
    returned = time.perf_counter() - start
    result.block_until_ready()
    return round_to(1e3 * returned)


def stacked_step(stacked: Drawing) -> dict[str, Any]:
    """Return the times of the stacked form, and free its weights."""
    try:
        return prepare_and_step(stacked)
    finally:
        stacked.forget()


def step(drawing: Drawing, stacked: Drawing) -> dict[str, Any]:
    """Return the times of the pipeline's form, and how far its result is from the stacked one's."""
    values = prepare_and_step(drawing)
    if stacked.result is not None:
        assert drawing.result is not None
        off = np.linalg.norm(drawing.result - stacked.result) / np.linalg.norm(stacked.result)
        values["difference from stacked"] = round_to(float(off))
    return values


def step_profile(drawing: Drawing) -> dict[str, Any]:
    """Return the time of one step by kind of kernel."""
    drawing.run_step().block_until_ready()
    return profile(drawing.run_step)


def picture(drawing: Drawing) -> dict[str, Any]:
    """Return the time of all steps, one after the other, without encoders and VAE."""
    return _picture(drawing, drawing.run_all_steps)


def without_subject(alone: Drawing) -> dict[str, Any]:
    """Return times of FLUX alone, and free its weights."""
    try:
        return prepare_and_step(alone) | {"picture": picture(alone)["s a picture"]}
    finally:
        alone.forget()


def one_program(drawing: Drawing) -> dict[str, Any]:
    """Return the time of all steps as one program, without encoders and VAE."""
    program = drawing.compile(sampler.sample, drawing.request)
    times = _picture(drawing, lambda: program.run(*drawing.models, drawing.request))
    return times | {"program": program.to_dict()}


def _picture(drawing: Drawing, call: Callable[[], Array]) -> dict[str, Any]:
    finite = bool(jnp.isfinite(call()).all())
    samples = max(2, drawing.settings.samples // 2)
    times = Timing(tuple(sample(call, 1) for _ in range(samples)))
    steps, batch = drawing.settings.steps, drawing.settings.batch
    return {
        "s a picture": round_to(times.median / batch),
        "steps": steps,
        "all": times.to_dict() | rates(steps * drawing.step_flops, times.median),
        "finite": finite,
        "peak GB": peak_gigabytes(),
    }


def variants(drawing: Drawing, budget: Budget) -> dict[str, Any]:
    """Return times of a step of few blocks under other options of the compiler.

    The usual ones come first, and again at last, for how far times of one program spread.

    Args:
        drawing: with few blocks.
        budget: of the whole measurement.
    """
    entries: dict[str, Any] = {"the usual ones": _variant(drawing, {})}
    for name, options in VARIANTS[platform()].items():
        if budget.left < VARIANT_SECONDS:
            entries[name] = {"skipped": f"{budget.left:.0f} s left"}
            continue
        entries[name] = tried(partial(_variant, drawing, options))
    again = timed(drawing.run_step, drawing.settings.samples)
    return entries | {"the usual ones again": again.to_dict()}


def _variant(drawing: Drawing, options: dict[str, Any]) -> dict[str, Any]:
    arguments = drawing.conditioning, drawing.request.latents, np.int32(0)
    program = drawing.compile(sampler.step, *arguments, **options) if options else drawing.step
    drawing.run_step(program).block_until_ready()
    times = timed(lambda: drawing.run_step(program), drawing.settings.samples)
    return times.to_dict() | program.to_dict()
