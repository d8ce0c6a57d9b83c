"""Work of `python -m train plan`: compile a training step at full size, report what it needs."""

import argparse
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ic_jax import auto_mesh
from ic_jax.models.rope import Rope
from ic_jax.planning import compile_plan
from ic_jax.sharding import describe, make_mesh, parse, shardings
from train import flops
from train.encode import Frozen, Ids, Reference, StepBatch, StepScalars
from train.optimizer import optimizer
from train.recipe import Stage
from train.step import TrainState, train_step
from train.step_inputs import static_arguments

BASE, ENCODERS, PARAMS, EMA, MOMENTS, BATCH = tuple[Any, ...](
    ("base", "encoders", "params", "EMA", "Adam moments", "batch")
)
# Labels of the step's arguments, by which their bytes are reported.
LABELS = (
    TrainState(PARAMS, EMA, MOMENTS, BATCH, BATCH),
    Frozen(BASE, *[ENCODERS] * 5),
    *[BATCH] * 5,
)


def step_report(args: argparse.Namespace) -> dict[str, Any]:
    """Return the report of the training step that the options ask for, as JSON values."""
    devices = compile_plan.topology_devices(args.topology)
    memory = auto_mesh.memory_of(devices[0])
    base = auto_mesh.published(jnp.bfloat16)
    adapter = base.pop("adapter")
    rows = {"a step": args.batch // args.accumulate}
    sizes = (
        auto_mesh.training_sizes(base, adapter, rows.values(), len(devices), memory)
        if args.mesh == "auto"
        else parse(args.mesh)
    )
    mesh = make_mesh(sizes, devices)
    auto_mesh.check_rows(rows, mesh)
    replicate = args.base == "replicated"
    if args.base == "auto" and memory is not None:
        replicate = auto_mesh.base_fits_whole(base, adapter, mesh, memory)

    settings = {k: getattr(args, k) for k in ("batch", "resolution", "accumulate", "remat")}
    report = _compile_step(args, Stage(steps=1, **settings), base, adapter, mesh, replicate)
    values = report.to_dict() | {
        "base": "replicated" if replicate else "sharded",
        "model TFLOP per sample": round(_model_flops(args, base, adapter.config) / 1e12, 1),
        "settings": settings,
    }
    if values["fits"] is False:
        heads = base["transformer"].config.num_attention_heads
        values["suggestion"] = _suggestion(args, mesh, heads)
    return values


def _compile_step(
    args: argparse.Namespace,
    stage: Stage,
    base: dict[str, Any],
    adapter: Any,
    mesh: Mesh,
    replicate: bool,
) -> compile_plan.CompileReport:
    start = partial(TrainState.start, optimizer=optimizer(stage), ema=True)
    state = compile_plan.sharded_shapes(jax.eval_shape(start, adapter), mesh)
    step = partial(train_step, **static_arguments(stage, "bfloat16"))
    frozen = compile_plan.sharded_shapes(Frozen(**base), mesh, replicate=replicate)
    return compile_plan.compile_report(
        "training step",
        step,
        (state, frozen, *_inputs(args, base, mesh)),
        LABELS,
        mesh,
        donate=(0,),
        out_shardings=(shardings(state, mesh), None),
    )


def _inputs(args: argparse.Namespace, base: dict[str, Any], mesh: Any) -> tuple[Any, ...]:
    """Return the shapes of the step's inputs: batch, empty prompt, rotary table, scalars, seed."""
    clip, siglip, flux = (base[k].config for k in ("clip", "siglip", "transformer"))
    side, b = siglip.image_size, args.batch

    def ids(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def pixels(*shape: int) -> Any:
        return jax.ShapeDtypeStruct((b, *shape, 3), jnp.uint8)

    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    words = clip.max_position_embeddings
    rows = (args.text_length + (args.resolution // 16) ** 2, flux.attention_head_dim // 2)
    table: Any = jax.ShapeDtypeStruct(rows, jnp.float32)
    batch = StepBatch(
        target=pixels(args.resolution, args.resolution),
        prompt=Ids(ids(b, words), ids(b, args.text_length)),
        reference=Reference(pixels(side, side), pixels(4, side, side)),
    )
    others = (
        Ids(ids(words), ids(args.text_length)),
        Rope(table, table),
        StepScalars(*[number] * len(fields(StepScalars))),
        ids(),
    )
    return compile_plan.batch_shapes(batch, mesh), *compile_plan.replicated_shapes(others, mesh)


def _model_flops(args: argparse.Namespace, base: dict[str, Any], adapter: Any) -> float:
    siglip, flux = base["siglip"].config, base["transformer"].config
    tokens = (args.resolution // 16) ** 2
    return flops.training_sample(flux, tokens, args.text_length, adapter, siglip)


def _suggestion(args: argparse.Namespace, mesh: Mesh, heads: int) -> str:
    """Return what to try where a plan does not fit: first of all, smaller parts of the batch."""
    sizes = mesh.shape
    rows = args.batch // args.accumulate // (sizes["data"] * sizes["fsdp"])
    if rows > 1:
        return f"try --accumulate {args.accumulate * rows}"
    if args.remat != "blocks":
        return "try --remat blocks"
    if sizes["fsdp"] % 2 == 0 and heads % (2 * sizes["tensor"]) == 0:
        # Two devices share a row: half as many rows at a time.
        changed = {**sizes, "fsdp": sizes["fsdp"] // 2, "tensor": 2 * sizes["tensor"]}
        shared = make_mesh(changed, list(mesh.devices.flat))
        return f"try --mesh {describe(shared)} --accumulate {2 * args.accumulate}"
    return "take more devices"
