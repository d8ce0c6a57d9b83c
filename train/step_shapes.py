"""Shapes of a training step's inputs at any size, to compile it or to make random ones."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ic_jax import auto_mesh, flow
from ic_jax.models.rope import Rope
from ic_jax.planning import compile_plan
from ic_jax.sharding import make_mesh, parse
from train.data.encoded_store import Embeddings, LatentPosterior
from train.encode import Ids, Reference, StepBatch, StepScalars
from train.objective import Trainable
from train.optimizer import state_copies
from train.recipe import Recipe, Stage

shaped: Any = jax.ShapeDtypeStruct


def layout(
    recipe: Recipe, base: Mapping[str, Any], trained: Trainable, devices: Sequence[Any]
) -> tuple[Mesh, bool]:
    """Return the mesh of a recipe on devices, and whether the base is replicated on each.

    Args:
        recipe: of which the stages' batches matter.
        base: frozen components, shapes in place of arrays.
        trained: trainable parameters, likewise.
        devices: that the mesh may take.

    Raises:
        ShardingError: no mesh of the devices holds the state, or a batch does not divide over it.
    """
    memory, copies = auto_mesh.memory_of(devices[0]), state_copies(recipe)
    rows = {name: stage.batch // stage.accumulate for name, stage in recipe.stages.items()}
    sharded = () if recipe.lora else trained
    sizes = (
        auto_mesh.training_sizes(base, sharded, rows.values(), len(devices), memory, copies)
        if recipe.mesh == "auto"
        else parse(recipe.mesh)
    )
    mesh = make_mesh(sizes, devices)
    auto_mesh.check_rows(rows, mesh)
    if recipe.base == "auto" and memory is not None:
        return mesh, auto_mesh.base_fits_whole(base, sharded, mesh, memory, copies)
    return mesh, recipe.base == "replicated"


def step_inputs(
    recipe: Recipe, stage: Stage, configs: Mapping[str, Any], mesh: Mesh
) -> tuple[Any, ...]:
    """Return the shapes of the step's inputs: batch, empty prompt, rotary table, scalars, seed.

    `configs` are those of all components by name, whatever the recipe trains.
    """
    flux, b = configs["transformer"], stage.batch
    side, vae = stage.resolution, configs["vae"]
    number = shaped((), jnp.float32)
    reference = regions = None
    tokens = (side // (flow.PATCH * vae.downscale)) ** 2
    if not recipe.lora:
        s, several = configs["siglip"].image_size, stage.subjects > 1
        each = (b, stage.subjects) if several else (b,)
        low, high = (*each, s, s, 3), (*each, 4, s, s, 3)
        reference = Reference(shaped(low, jnp.uint8), shaped(high, jnp.uint8))
        regions = shaped((*each, tokens), jnp.float32) if several else None
    latents = (side // vae.downscale, side // vae.downscale)
    target = shaped((b, side, side, 3), jnp.uint8)
    if recipe.cache:
        moments = shaped((b, *latents, vae.latent_channels), jnp.float32)
        target = LatentPosterior(moments, moments)
    batch = StepBatch(
        target=target,
        prompt=_prompts(recipe, configs, b),
        reference=reference,
        focus=shaped((b, *latents), jnp.float32) if stage.focus else None,
        regions=regions,
    )
    table = shaped((recipe.text_length + tokens, flux.attention_head_dim // 2), jnp.float32)
    others = (
        _prompts(recipe, configs),
        Rope(table, table),
        StepScalars(*[number] * len(fields(StepScalars))),
        shaped((), jnp.int32),
    )
    return compile_plan.batch_shapes(batch, mesh), *compile_plan.replicated_shapes(others, mesh)


def _prompts(recipe: Recipe, configs: Mapping[str, Any], *b: int) -> Any:
    """Return the shapes of b prompts as the step gets them: tokens, or cached embeddings."""
    length, flux = recipe.text_length, configs["transformer"]
    if recipe.cache:
        dtype = jnp.dtype(recipe.dtype)
        return Embeddings(
            shaped((*b, length, flux.joint_attention_dim), dtype),
            shaped((*b, flux.pooled_projection_dim), dtype),
        )
    words = configs["clip"].max_position_embeddings
    return Ids(shaped((*b, words), jnp.int32), shaped((*b, length), jnp.int32))
