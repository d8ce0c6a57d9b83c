"""Work of `python -m infer plan`: compile the sampler at full size and report what it needs."""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ic_jax import auto_mesh, cli, sampler
from ic_jax.devices import platform
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.rope import Rope
from ic_jax.models.unstacked import compiler_options, drawing_form
from ic_jax.planning import compile_plan
from ic_jax.planning.compile_plan import PlannedProgram, compile_report, replicated_shapes
from ic_jax.planning.report import show
from ic_jax.planning.topologies import TOPOLOGY_HELP, over_whole_topology, topology_devices
from ic_jax.sharding import ShardingError, describe, make_mesh, parse, stored_bytes
from ic_jax.weights.model_source import open_model

COMPUTED = ("transformer", "adapter")  # components that take part in sampling
SETTINGS = ("height", "width", "steps", "batch", "text_length", "reference")
REFERENCE_SIDE = 1024  # pixels; Kontext's other sizes have about as many tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan`."""
    add = parser.add_argument
    add("--topology", help=TOPOLOGY_HELP)
    add("--mesh", metavar="AXES", default="auto", help="mesh axes, such as data=2,tensor=4")
    add("--model", type=cli.path, help="MODEL folder (default: the published sizes)")
    add("--height", type=cli.count, default=1024, metavar="PIXELS", help="height of a picture")
    add("--width", type=cli.count, default=1024, metavar="PIXELS", help="width of a picture")
    add("--steps", type=cli.count, default=28, metavar="N", help="number of denoising steps")
    add("--batch", type=cli.count, default=1, metavar="N", help="pictures that are drawn together")
    length = "length of prompts in T5 tokens"
    add("--text-length", type=cli.count, default=512, metavar="N", help=length)
    reference = "with a reference picture of FLUX.1 Kontext, of 1024 x 1024 pixels"
    add("--reference", action="store_true", help=reference)
    add(
        "--split-prepare",
        action="store_true",
        help="compile what does not depend on the noise as a separate program, as if its weights "
        "and the encoders could be freed before sampling",
    )
    add("--json", type=cli.path, metavar="FILE", help="also write the figures to a file")
    cli.add_renamed(parser, phases="--split-prepare")


def run(args: argparse.Namespace) -> None:
    """Print the reports, and write them as JSON if asked."""
    shapes = (
        auto_mesh.shapes_of(open_model(args.model), jnp.bfloat16)
        if args.model
        else auto_mesh.published(jnp.bfloat16)
    )
    show(reports(args, shapes, topology_devices(args.topology)), args.json)


def reports(
    args: argparse.Namespace, shapes: dict[str, Any], devices: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return a report of each program that the options ask for, as JSON values.

    Args:
        args: the options.
        shapes: the model's components, shapes in place of arrays.
        devices: on which the model is planned.

    Raises:
        ShardingError: no mesh of the devices holds the model, or not the one that the options name.
    """
    mesh = over_whole_topology(_mesh(args.mesh, shapes, devices), devices)
    # The encoders and the VAE stay in memory unless the programs are split.
    others = {k: v for k, v in shapes.items() if k not in COMPUTED}
    resident = 0 if args.split_prepare else stored_bytes(others, mesh)
    settings = {name: getattr(args, name) for name in SETTINGS}
    return [
        _with_verdict(report.to_dict(), resident, shapes, devices) | {"settings": settings}
        for report in map(compile_report, programs(args, shapes, mesh))
    ]


def programs(args: argparse.Namespace, shapes: dict[str, Any], mesh: Mesh) -> list[PlannedProgram]:
    """Return the sampler, or what it computes before the loop and one step of the loop."""
    target = platform(mesh.devices.flat[0])
    form = partial(drawing_form, platform=target)
    models = jax.eval_shape(form, *(shapes[k] for k in COMPUTED))
    flux, adapter = compile_plan.sharded_shapes(models, mesh)
    planned = partial(PlannedProgram, compiler_options=compiler_options(target))
    request = request_shapes(args, shapes, mesh)
    inputs, labels, minutes = (flux, adapter, request), (*COMPUTED, "request"), _minutes(mesh)
    if not args.split_prepare:
        return [planned("sample", sampler.sample, inputs, labels, mesh, minutes)]
    conditioning = jax.eval_shape(sampler.prepare, flux, adapter, request)
    conditioning = replicated_shapes(conditioning, mesh)
    step = (flux, adapter, conditioning, request.latents, _replicated(mesh, (), jnp.int32))
    step_labels = (*labels, "request", "request")
    return [
        planned("prepare", sampler.prepare, inputs, labels, mesh, minutes // 2),
        planned("one step", sampler.step, step, step_labels, mesh, minutes // 2),
    ]


def _minutes(mesh: Mesh) -> int:
    """Return how long the compiler takes; libtpu's tries more the larger each chip's part is."""
    if platform(mesh.devices.flat[0]) != "tpu":
        return 3
    return 10 if mesh.size == 1 else 4


def request_shapes(args: argparse.Namespace, shapes: Any, mesh: Mesh) -> sampler.SamplingRequest:
    """Return a request with one subject, shapes in place of arrays."""
    flux, adapter, siglip, vae = (
        shapes[k].config for k in ("transformer", "adapter", "siglip", "vae")
    )
    side = 2 * vae.downscale
    tokens, b = args.height // side * (args.width // side), args.batch
    patches = (siglip.image_size // siglip.patch_size) ** 2
    reference_tokens = (REFERENCE_SIDE // side) ** 2 if args.reference else 0
    rope = tokens + reference_tokens + args.text_length, flux.attention_head_dim // 2

    def bfloat16(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def float32(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    parts = (1, len(adapter.siglip_layers), 4)
    features = SubjectFeatures(*(bfloat16(1, n * patches, adapter.inner_dim) for n in parts))
    prompt = sampler.TextEmbeddings(
        bfloat16(b, args.text_length, flux.joint_attention_dim),
        bfloat16(b, flux.pooled_projection_dim),
    )
    later: Any = None  # replaced below
    latents = float32(b, tokens, flux.in_channels)
    reference: Any = bfloat16(b, reference_tokens, flux.in_channels) if args.reference else None
    return compile_plan.batch_shapes(
        sampler.SamplingRequest(latents, prompt, float32(b), later, later, reference=reference),
        mesh,
    )._replace(
        sigmas=_replicated(mesh, (args.steps + 1,)),
        rope=Rope(_replicated(mesh, rope), _replicated(mesh, rope)),
        subject=compile_plan.batch_shapes(sampler.Subject(features, float32(b)), mesh),
    )


def _replicated(mesh: Mesh, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    return replicated_shapes(jax.ShapeDtypeStruct(shape, dtype), mesh)


def _mesh(text: str, shapes: Any, devices: Sequence[Any]) -> Mesh:
    """Return the mesh that drawing would choose; every process draws if its devices are enough."""
    memory = auto_mesh.memory_of(devices[0])
    if text != "auto" or memory is None:
        return make_mesh(parse("data=1" if text == "auto" else text), devices)
    local = [x for x in devices if x.process_index == devices[0].process_index]
    return auto_mesh.inference_mesh(shapes, local, devices, memory)


def _with_verdict(
    report: dict[str, Any], resident: int, shapes: Any, devices: Any
) -> dict[str, Any]:
    """Add the weights that stay beside the program, and a mesh that fits if this one does not."""
    sizes = report["bytes per device"]
    memory = sizes["memory"]
    if resident:
        sizes["encoders and VAE, kept"] = resident
        sizes["needed"] += resident
        report["fits"] = report["fits"] and sizes["needed"] <= memory
    if report["fits"] is False:
        report["suggestion"] = _suggestion(report["mesh"], shapes, devices, memory)
    return report


def _suggestion(mesh: str, shapes: Any, devices: Any, memory: float) -> str:
    """Return what would fit where a program on a mesh does not."""
    try:
        sizes = auto_mesh.inference_sizes(shapes, len(devices), memory)
    except ShardingError as error:
        return f"{error}; or free the encoders: --split-prepare"
    better = describe(make_mesh(sizes, devices))
    if better != mesh:
        return f"try --mesh {better}"
    return "take more devices, a smaller batch or smaller pictures"
