"""`python -m train plan`: what a training step needs on devices that need not be there."""

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

BASE, ENCODERS, MASTERS, AVERAGE, MOMENTS, BATCH = tuple[Any, ...](
    ("base", "encoders", "masters", "their average", "moments", "batch")
)
KINDS = (
    TrainState(MASTERS, AVERAGE, MOMENTS, BATCH, BATCH),
    Frozen(BASE, *[ENCODERS] * 5),
    *[BATCH] * 5,
)


def step_plan(o: argparse.Namespace) -> dict[str, Any]:
    """The plan that the options ask for, as JSON values."""
    devices = compile_plan.topology_devices(o.topology)
    memory = auto_mesh.memory_of(devices[0])
    base = auto_mesh.published(jnp.bfloat16)
    adapter = base.pop("adapter")
    parts = {"a step": o.batch // o.accumulate}
    sizes = (
        auto_mesh.training_sizes(base, adapter, parts.values(), len(devices), memory)
        if o.mesh == "auto"
        else parse(o.mesh)
    )
    mesh = make_mesh(sizes, devices)
    auto_mesh.check_rows(parts, mesh)
    whole = o.base == "replicated"
    if o.base == "auto" and memory is not None:
        whole = auto_mesh.base_fits_whole(base, adapter, mesh, memory)

    given = {k: getattr(o, k) for k in ("batch", "resolution", "accumulate", "remat")}
    stage = Stage(steps=1, **given)
    rule = optimizer(stage)
    state = compile_plan.sharded_shapes(
        jax.eval_shape(partial(TrainState.start, optimizer=rule, ema=True), adapter), mesh
    )
    step = partial(
        train_step,
        optimizer=rule,
        timesteps=stage.timesteps,
        accumulate=stage.accumulate,
        remat=stage.remat,
        dtype=jnp.bfloat16,
    )
    frozen = compile_plan.sharded_shapes(Frozen(**base), mesh, replicate=whole)
    found = compile_plan.compile_report(
        "training step",
        step,
        (state, frozen, *_rest(o, base, mesh)),
        KINDS,
        mesh,
        donate=(0,),
        out_shardings=(shardings(state, mesh), None),
    )
    values = found.to_dict() | {
        "base": "replicated" if whole else "sharded",
        "model TFLOP per sample": round(_model_flops(o, base, adapter.config) / 1e12, 1),
        "settings": given,
    }
    if values["fits"] is False:
        heads = base["transformer"].config.num_attention_heads
        values["suggestion"] = _better(o, mesh, heads)
    return values


def _rest(o: argparse.Namespace, base: dict[str, Any], mesh: Any) -> tuple[Any, ...]:
    """The step's other arguments: batch, empty prompt, rotary table, scalars, seed."""
    clip, siglip, flux = (base[k].config for k in ("clip", "siglip", "transformer"))
    side, b = siglip.image_size, o.batch

    def ids(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def pixels(*shape: int) -> Any:
        return jax.ShapeDtypeStruct((b, *shape, 3), jnp.uint8)

    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    words = clip.max_position_embeddings
    rows = (o.text_length + (o.resolution // 16) ** 2, flux.attention_head_dim // 2)
    table: Any = jax.ShapeDtypeStruct(rows, jnp.float32)
    batch = StepBatch(
        target=pixels(o.resolution, o.resolution),
        prompt=Ids(ids(b, words), ids(b, o.text_length)),
        reference=Reference(pixels(side, side), pixels(4, side, side)),
    )
    others = (
        Ids(ids(words), ids(o.text_length)),
        Rope(table, table),
        StepScalars(*[number] * len(fields(StepScalars))),
        ids(),
    )
    return compile_plan.batch_shapes(batch, mesh), *compile_plan.replicated_shapes(others, mesh)


def _model_flops(o: argparse.Namespace, base: dict[str, Any], adapter: Any) -> float:
    siglip, flux = base["siglip"].config, base["transformer"].config
    tokens = (o.resolution // 16) ** 2
    return flops.training_sample(
        flops.flux_forward(flux, tokens, o.text_length),
        flops.adapter_forward(adapter, flux, tokens, (siglip.image_size // siglip.patch_size) ** 2),
    )


def _better(o: argparse.Namespace, mesh: Mesh, heads: int) -> str:
    """What to try instead of a plan that does not fit: less at a time, first of all."""
    sizes = mesh.shape
    rows = o.batch // o.accumulate // (sizes["data"] * sizes["fsdp"])
    if rows > 1:
        return f"try --accumulate {o.accumulate * rows}"
    if o.remat != "blocks":
        return "try --remat blocks"
    if sizes["fsdp"] % 2 == 0 and heads % (2 * sizes["tensor"]) == 0:
        # Two devices share a row: half as many rows at a time.
        changed = {**sizes, "fsdp": sizes["fsdp"] // 2, "tensor": 2 * sizes["tensor"]}
        shared = make_mesh(changed, list(mesh.devices.flat))
        return f"try --mesh {describe(shared)} --accumulate {2 * o.accumulate}"
    return "take more devices"
