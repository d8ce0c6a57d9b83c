"""Shapes of a training step's inputs at the published sizes, to compile it with."""

from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ic_jax import auto_mesh
from ic_jax.config import FluxConfig
from ic_jax.models.rope import Rope
from ic_jax.planning import compile_plan
from train.data.encoded_store import Embeddings, LatentPosterior
from train.encode import Ids, Reference, StepBatch, StepScalars
from train.recipe import Recipe, Stage

shaped: Any = jax.ShapeDtypeStruct


def step_inputs(recipe: Recipe, stage: Stage, base: dict[str, Any], mesh: Mesh) -> tuple[Any, ...]:
    """Return the shapes of the step's inputs: batch, empty prompt, rotary table, scalars, seed."""
    flux, b = base["transformer"].config, stage.batch
    side, vae = stage.resolution, auto_mesh.config("vae")
    number = shaped((), jnp.float32)
    reference = None
    if "siglip" in base:
        s = base["siglip"].config.image_size
        reference = Reference(shaped((b, s, s, 3), jnp.uint8), shaped((b, 4, s, s, 3), jnp.uint8))
    latents = (side // vae.downscale, side // vae.downscale)
    target = shaped((b, side, side, 3), jnp.uint8)
    if recipe.cache:
        moments = shaped((b, *latents, vae.latent_channels), jnp.float32)
        target = LatentPosterior(moments, moments)
    batch = StepBatch(
        target=target,
        prompt=_prompts(recipe, flux, b),
        reference=reference,
        focus=shaped((b, *latents), jnp.float32) if stage.focus else None,
    )
    tokens = recipe.text_length + (side // 16) ** 2
    table = shaped((tokens, flux.attention_head_dim // 2), jnp.float32)
    others = (
        _prompts(recipe, flux),
        Rope(table, table),
        StepScalars(*[number] * len(fields(StepScalars))),
        shaped((), jnp.int32),
    )
    return compile_plan.batch_shapes(batch, mesh), *compile_plan.replicated_shapes(others, mesh)


def _prompts(recipe: Recipe, flux: FluxConfig, *b: int) -> Any:
    """Return the shapes of b prompts as the step gets them: tokens, or cached embeddings."""
    length = recipe.text_length
    if recipe.cache:
        dtype = jnp.dtype(recipe.dtype)
        return Embeddings(
            shaped((*b, length, flux.joint_attention_dim), dtype),
            shaped((*b, flux.pooled_projection_dim), dtype),
        )
    words = auto_mesh.config("clip").max_position_embeddings
    return Ids(shaped((*b, words), jnp.int32), shaped((*b, length), jnp.int32))
