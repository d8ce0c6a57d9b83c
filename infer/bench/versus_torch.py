"""One step of drawing beside that of diffusers in PyTorch, eager and compiled, in alternation.

All compute with the same random weights, on the same device.
"""

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ic_jax import flow
from ic_jax.devices import platform
from ic_jax.measuring.parts import one_line
from ic_jax.measuring.random_weights import random_like
from ic_jax.measuring.timing import Timing, calls_in_a_sample, compiled, rates, round_to
from ic_jax.models.flux import Flux
from ic_jax.weights.loading import parameters
from infer.bench.drawing import Drawing

STEP, ONE_CALL = "ours, step", "ours, one call"
Call = Callable[[], Any]


def compare(drawing: Drawing) -> dict[str, Any]:
    """Return times of our step and of diffusers' transformer, and how far the results differ.

    Ours is timed twice: as the loop over steps runs it, with the modulation computed beforehand,
    and in one call like diffusers, which computes the modulation in every step.
    """
    theirs = _diffusers(drawing)  # before the weights are in the form in which we draw
    calls = {STEP: drawing.run_step, ONE_CALL: _our_call(drawing)}
    entries: dict[str, Any] = {name: {} for name in calls}
    velocity = np.asarray(calls[ONE_CALL]().astype("float32"))
    for name, make in theirs.items():
        start = time.perf_counter()
        try:
            call = make()
            result = call().float().cpu().numpy()
        except Exception as error:
            entries[name] = {"failed": one_line(error)}
            continue
        off = np.linalg.norm(result - velocity) / np.linalg.norm(velocity)
        first = time.perf_counter() - start
        calls[name] = call
        entries[name] = {"first call s": round_to(first), "difference": round_to(float(off))}
    for name, (wall, processor) in _alternate(calls, drawing.settings.samples).items():
        entries[name] |= wall.to_dict() | rates(drawing.step_flops, wall.median)
        entries[name]["processor ms"] = round_to(1e3 * processor.median)
    entries |= _products(drawing)
    for ours in (STEP, ONE_CALL):
        entries[f"times as long as {ours}"] = {
            name: round_to(entries[name]["ms"] / entries[ours]["ms"])
            for name in calls
            if name not in (STEP, ONE_CALL)
        }
    return entries | {"conditions": _conditions(drawing)}


def _our_call(drawing: Drawing) -> Call:
    (flux, _), r = drawing.models, drawing.request
    batch, sigma = drawing.settings.batch, r.sigmas[drawing.settings.steps // 2]
    latents, times = r.latents.astype(drawing.dtype), sigma.repeat(batch)
    arguments = (flux, latents, *r.prompt, times, r.guidance_scale, r.rope)
    program = compiled(Flux.__call__, *arguments, options=drawing.compiler_options)
    return lambda: program.run(*arguments)


def _diffusers(drawing: Drawing) -> dict[str, Callable[[], Call]]:
    """Return functions that make the contenders: calls of diffusers' transformer."""
    import torch

    if platform(jax.devices()[0]) == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # by default one for two hyperthreads
    model, inputs = _transformer(drawing), _inputs(drawing)

    def call_of(module: Any) -> Call:
        def call() -> Any:
            with torch.inference_mode():
                result = module(**inputs, return_dict=False)[0]
                if result.is_cuda:
                    torch.cuda.synchronize()
            return result

        return call

    return {
        "diffusers, eager": lambda: call_of(model),
        "diffusers, compiled": lambda: call_of(torch.compile(model)),
    }


def _transformer(drawing: Drawing) -> Any:
    """Return diffusers' transformer with the weights of the drawing."""
    import torch
    from diffusers import FluxTransformer2DModel

    flux = drawing.random_flux()
    ours = {path: torch.from_dlpack(x[...]) for path, x in parameters(flux).items()}
    like = next(iter(ours.values()))
    torch.set_default_dtype(like.dtype)
    with torch.device(like.device):
        model: Any = FluxTransformer2DModel(**flux.config.to_dict())
    model.eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_of_ours(name, ours))
    return model


def _of_ours(name: str, ours: dict[str, Any]) -> Any:
    """Return the tensor of a published name from our stacked and transposed parameters."""
    parts, block = name.split("."), None
    if parts[1].isdecimal():
        block, parts[1] = int(parts[1]), "*"
    kernel = ".".join([*parts[:-1], "kernel"])
    path = kernel if parts[-1] == "weight" and kernel in ours else ".".join(parts)
    tensor = ours[path] if block is None else ours[path][block]
    return tensor.T if path == kernel else tensor


def _inputs(drawing: Drawing) -> dict[str, Any]:
    import torch

    r, s = drawing.request, drawing.settings
    ids = flow.position_ids(s.text_length, *drawing.grid).astype(np.float32)
    arrays = {
        "hidden_states": r.latents.astype(drawing.dtype),
        "encoder_hidden_states": r.prompt.embeds,
        "pooled_projections": r.prompt.pooled,
        "timestep": r.sigmas[s.steps // 2].repeat(s.batch),
        "guidance": r.guidance_scale,
        "txt_ids": jax.device_put(ids[: s.text_length]),
        "img_ids": jax.device_put(ids[s.text_length :]),
    }
    return {name: torch.from_dlpack(jax.block_until_ready(x)) for name, x in arrays.items()}


def _alternate(calls: dict[str, Call], samples: int) -> dict[str, tuple[Timing, Timing]]:
    """Return wall and processor seconds of a call of each contender, sampled in turns."""
    counts = {name: calls_in_a_sample(call) for name, call in calls.items()}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(samples):
        for name, call in calls.items():
            start, before = time.perf_counter(), time.process_time()
            for _ in range(counts[name]):
                jax.block_until_ready(call())
            wall[name].append((time.perf_counter() - start) / counts[name])
            processor[name].append((time.process_time() - before) / counts[name])
    return {name: (Timing(tuple(wall[name])), Timing(tuple(processor[name]))) for name in calls}


def _products(drawing: Drawing) -> dict[str, Any]:
    """Return times of the MLP's product alone, which bounds what either can reach."""
    import torch

    d, s = drawing.configs["transformer"].hidden_size, drawing.settings
    rows = s.batch * (drawing.image_tokens + s.text_length)
    a, b = (
        random_like(jax.ShapeDtypeStruct(shape, drawing.dtype), name)
        for name, shape in {"a": (rows, d), "b": (d, 4 * d)}.items()
    )
    product = compiled(jnp.matmul, a, b)
    torch_a, torch_b = map(torch.from_dlpack, jax.block_until_ready((a, b)))

    def in_torch() -> Any:
        result = torch_a @ torch_b
        if result.is_cuda:
            torch.cuda.synchronize()

    calls = {"product, JAX": lambda: product.run(a, b), "product, PyTorch": in_torch}
    return {
        name: wall.to_dict() | rates(8.0 * rows * d * d, wall.median)
        for name, (wall, _) in _alternate(calls, s.samples).items()
    }


def _conditions(drawing: Drawing) -> dict[str, Any]:
    """Return versions and settings of PyTorch, and which attention diffusers used."""
    import torch
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    from torch.nn.attention import SDPBackend

    config, s = drawing.configs["transformer"], drawing.settings
    tokens = drawing.image_tokens + s.text_length
    like = _inputs(drawing)["hidden_states"]
    shape = (s.batch, config.num_attention_heads, tokens, config.attention_head_dim)
    q = torch.empty(shape, dtype=like.dtype, device=like.device)
    return {
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "threads": torch.get_num_threads(),
        "attention": str(_AttentionBackendRegistry.get_active_backend()[0].value),
        "kernel": SDPBackend(torch._fused_sdp_choice(q, q, q)).name,
        "cudnn": torch.backends.cudnn.version(),
    }
