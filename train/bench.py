"""Work of `python -m train bench`: a training step on random weights and pictures, timed."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import auto_mesh, flow
from ic_jax.config import SchedulerConfig
from ic_jax.measuring.origin import origin
from ic_jax.measuring.parts import Budget, Part, Results, measure
from ic_jax.measuring.random_weights import random_like, random_module
from ic_jax.measuring.sizes import Size, size_of
from ic_jax.measuring.timing import Timing, compiled, peak_gigabytes, rates, round_to
from ic_jax.models.rope import rope_table
from ic_jax.models.unstacked import split_output
from ic_jax.sharding import describe, replicate_to_mesh, shardings
from train import flops, lora
from train.encode import Frozen, StepScalars
from train.models import components_of
from train.objective import Trainable
from train.optimizer import optimizer
from train.recipe import Recipe, Stage
from train.step import TrainState, train_step
from train.step_settings import numbers, static_arguments
from train.step_shapes import layout, step_inputs

PACKAGES = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
STEP_SECONDS = 120.0  # that compiling and timing one step takes at the published size, at most
TOKEN_IDS = 32  # random ids are below; every vocabulary has more
SETTINGS = ("resolution", "accumulate", "remat", "subjects")


def run(
    recipe: Recipe,
    size: str,
    batches: Sequence[int],
    samples: int,
    budget: Budget,
    file: Path | None,
) -> None:
    """Measure a step of the recipe's first stage with each number of samples in a batch."""
    # With its subject dropped, a row has no gradient.
    stage = replace(next(iter(recipe.stages.values())), subject_dropout=0.0)
    settings = {k: getattr(stage, k) for k in SETTINGS} | {"size": size, "dtype": recipe.dtype}
    settings |= {"optimizer": recipe.optimizer, "average": recipe.averages}
    settings |= {"cache": bool(recipe.cache)}
    parts = [
        Part(
            f"batch {batch}",
            STEP_SECONDS,
            partial(measure_step, recipe, replace(stage, batch=batch), size_of(size), samples),
        )
        for batch in batches
    ]
    measure(parts, Results({**origin(*PACKAGES), "training": settings}, file), budget)


def measure_step(recipe: Recipe, stage: Stage, size: Size, samples: int) -> dict[str, Any]:
    """Return the times of a step; the size names the models, whatever the recipe does.

    Raises:
        ShardingError: no mesh of the devices holds the state, or the batch does not divide over it.
    """
    recipe = replace(recipe, stages={"the step": stage})
    used = components_of(recipe, previews=False) & size.configs.keys()
    shapes = auto_mesh.shapes(size.configs, jnp.dtype(recipe.dtype))
    base = {name: shapes[name] for name in used}
    mesh, replicate = layout(recipe, base, shapes["adapter"], jax.devices())
    with jax.set_mesh(mesh):
        frozen = _frozen(recipe, size, used, mesh, replicate)
        state, places = _start(recipe, stage, _trainable(recipe, size, frozen, mesh), mesh)
        inputs = _inputs(recipe, stage, size, mesh)
        step = partial(train_step, **static_arguments(stage, recipe.optimizer, recipe.dtype))
        options: dict[str, Any] = {"donate_argnums": 0, "out_shardings": (places, None)}
        program = compiled(step, state, frozen, *inputs, **options)
        seconds = []
        for _ in range(1 + samples):
            begin = time.perf_counter()
            state, metrics = jax.block_until_ready(program.run(state, frozen, *inputs))
            seconds.append(time.perf_counter() - begin)
    times = Timing(tuple(seconds[1:]))  # the first allocates
    arithmetic = rates(_flops(recipe, stage, size) / mesh.size, times.median)
    return {
        "mesh": describe(mesh),
        "base": "replicated" if replicate else "sharded",
        "step": times.to_dict() | arithmetic,  # of one device
        "samples/s": round_to(stage.batch / times.median),
        "program": program.to_dict(),
        "loss": float(metrics.loss),
        "gradient norm": float(metrics.grad_norm),
        "peak GB": peak_gigabytes(),
    }


def _frozen(recipe: Recipe, size: Size, used: set[str], mesh: Mesh, replicate: bool) -> Frozen:
    parts: dict[str, Any] = dict.fromkeys(Frozen._fields)
    dtype, flux = jnp.dtype(recipe.dtype), size.configs["transformer"]
    for name in used:
        config = size.configs[name]
        parts[name] = random_module(name, config, flux, dtype, mesh=mesh, replicate=replicate)
    parts["transformer"] = split_output(parts["transformer"])
    return Frozen(**parts)


def _trainable(recipe: Recipe, size: Size, frozen: Frozen, mesh: Mesh) -> Trainable:
    if recipe.lora:
        pairs = lora.initial(frozen.transformer, recipe.lora, recipe.seed)
        return replicate_to_mesh(pairs, NamedSharding(mesh, P()))
    adapter, flux = size.configs["adapter"], size.configs["transformer"]
    return random_module("adapter", adapter, flux, jnp.float32, mesh=mesh)


def _start(
    recipe: Recipe, stage: Stage, params: Trainable, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """Return the state before training and the shardings of its arrays; it takes the parameters'
    memory."""
    rule = optimizer(recipe.optimizer, stage)
    start = partial(TrainState.start, optimizer=rule, ema=recipe.averages)
    places = shardings(jax.eval_shape(start, params), mesh)
    return jax.jit(start, donate_argnums=0, out_shardings=places)(params), places


def _inputs(recipe: Recipe, stage: Stage, size: Size, mesh: Mesh) -> tuple[Any, ...]:
    """Return random arguments of the step after its state and the base."""
    rows, empty, *_ = step_inputs(recipe, stage, size.configs, mesh)

    def random(shape: jax.ShapeDtypeStruct) -> jax.Array:
        below = TOKEN_IDS if jnp.issubdtype(shape.dtype, jnp.signedinteger) else 256
        return random_like(shape, "row", below)

    side = stage.resolution // size.pixels_per_token
    ids = flow.position_ids(recipe.text_length, side, side)
    scalars = StepScalars(**numbers(stage, 0, flow.shift(side * side, SchedulerConfig())))  # type: ignore[arg-type]
    others = (rope_table(ids, size.configs["transformer"]), scalars, jnp.int32(recipe.seed))
    replicated = replicate_to_mesh(others, NamedSharding(mesh, P()))
    return *jax.tree.map(random, (rows, empty)), *replicated


def _flops(recipe: Recipe, stage: Stage, size: Size) -> float:
    """Return the model FLOPs of a step of the batch, forward and backward."""
    tokens = (stage.resolution // size.pixels_per_token) ** 2
    flux, siglip = size.configs["transformer"], size.configs["siglip"]
    adapter = None if recipe.lora else size.configs["adapter"]
    lengths = tokens, recipe.text_length
    sample = flops.training_sample(flux, *lengths, adapter, siglip, stage.subjects)
    return stage.batch * sample
