"""`python -m infer plan`: what drawing needs on devices that need not be there."""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ic_jax import auto_mesh, sampler
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.rope import Rope
from ic_jax.planning import compile_plan
from ic_jax.sharding import ShardingError, describe, make_mesh, parse, stored_bytes


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Add the options of `plan`."""
    p.add_argument("--topology", help="such as v5e:2x4 or v6e:2x2 (default: this machine)")
    p.add_argument("--mesh", default="auto", help="such as data=2,tensor=4")
    p.add_argument("--model", type=Path, help="model folder (default: the published sizes)")
    p.add_argument("--height", type=int, default=1024, help="pixels")
    p.add_argument("--width", type=int, default=1024, help="pixels")
    p.add_argument("--steps", type=int, default=28, help="denoising steps")
    p.add_argument("--batch", type=int, default=1, help="pictures at a time")
    p.add_argument("--text-length", type=int, default=512, help="T5 tokens")
    p.add_argument(
        "--phases",
        action="store_true",
        help="what does not depend on the noise as a program of its own, its weights put away "
        "before the steps, as are the encoders",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")


def run(args: argparse.Namespace) -> None:
    """Print the report, and write it as JSON if asked."""
    compile_plan.show(plans(args), args.json)


def plans(o: argparse.Namespace) -> list[dict[str, Any]]:
    """The plans that the options ask for, as JSON values."""
    devices = compile_plan.devices_of(o.topology)
    shapes = (
        auto_mesh.shapes_of(o.model, jnp.bfloat16) if o.model else auto_mesh.published(jnp.bfloat16)
    )
    mesh = make_mesh(_sizes(o.mesh, shapes, devices), devices)
    flux, adapter = (compile_plan.placed(shapes[kind], mesh) for kind in ("transformer", "adapter"))
    asked = request(o, flux.config, shapes, mesh)
    weights = ("transformer", "adapter")
    if o.phases:
        conditioning = jax.eval_shape(sampler.prepare, flux, adapter, asked)
        conditioning = compile_plan.everywhere(conditioning, mesh)
        step = (flux, adapter, conditioning, asked.latents, _whole(mesh, (), jnp.int32))
        found = [
            compile_plan.compile_plan(
                "prepare", sampler.prepare, (flux, adapter, asked), (*weights, "request"), mesh
            ),
            compile_plan.compile_plan(
                "one step", sampler.step, step, (*weights, *["request"] * 3), mesh
            ),
        ]
        resident = 0
    else:
        arguments = (flux, adapter, asked)
        found = [
            compile_plan.compile_plan(
                "sample", sampler.sample, arguments, (*weights, "request"), mesh
            )
        ]
        others = {k: v for k, v in shapes.items() if k not in weights}
        resident = stored_bytes(others, mesh)
    settings = {k: getattr(o, k) for k in ("height", "width", "steps", "batch", "text_length")}
    return [
        _finished(compile_plan.report(one, mesh), resident, shapes, devices)
        | {"settings": settings}
        for one in found
    ]


def request(o: argparse.Namespace, flux: Any, shapes: Any, mesh: Mesh) -> sampler.SamplingRequest:
    """A request of one subject, as shapes."""
    adapter, siglip, vae = (shapes[k].config for k in ("adapter", "siglip", "vae"))
    side = 2 * vae.downscale
    tokens, b = o.height // side * (o.width // side), o.batch
    patches = (siglip.image_size // siglip.patch_size) ** 2
    every = tokens + o.text_length, flux.attention_head_dim // 2

    def half(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def full(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    parts = (1, len(adapter.siglip_layers), 4)
    features = SubjectFeatures(*(half(1, n * patches, adapter.inner_dim) for n in parts))
    prompt = sampler.TextEmbeddings(
        half(b, o.text_length, flux.joint_attention_dim), half(b, flux.pooled_projection_dim)
    )
    later: Any = None
    latents = full(b, tokens, flux.in_channels)
    return compile_plan.rows(
        sampler.SamplingRequest(latents, prompt, full(b), later, later), mesh
    )._replace(
        sigmas=_whole(mesh, (o.steps + 1,)),
        rope=Rope(_whole(mesh, every), _whole(mesh, every)),
        subject=compile_plan.rows(sampler.Subject(features, full(b)), mesh),
    )


def _whole(mesh: Mesh, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    return compile_plan.everywhere(jax.ShapeDtypeStruct(shape, dtype), mesh)


def _sizes(text: str, shapes: Any, devices: Any) -> dict[str, int]:
    memory = auto_mesh.memory_of(devices[0])
    if text != "auto" or memory is None:
        return parse("data=1" if text == "auto" else text)
    return auto_mesh.inference_sizes(shapes, len(devices), memory)


def _finished(found: dict[str, Any], resident: int, shapes: Any, devices: Any) -> dict[str, Any]:
    """With what lies beside the program on a device, and what would fit if this does not."""
    sizes = found["bytes per device"]
    memory = sizes["memory"]
    if resident:
        sizes["encoders and VAE, kept"] = resident
        sizes["needed"] += resident
        found["fits"] = found["fits"] and sizes["needed"] <= memory
    if found["fits"] is False:
        try:
            better = make_mesh(auto_mesh.inference_sizes(shapes, len(devices), memory), devices)
            found["suggestion"] = f"try --mesh {describe(better)}"
        except ShardingError:
            found["suggestion"] = "no mesh of these devices; take more of them, or --phases"
    return found
