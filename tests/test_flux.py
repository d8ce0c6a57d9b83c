"""FLUX against diffusers on random weights, at several sizes, dev and schnell."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ic_jax.config import FluxConfig
from ic_jax.flow import position_ids
from ic_jax.models.flux import Flux
from ic_jax.models.rope import rope_table
from tests.oracle import cast, converted, randomize, relative

DEV = FluxConfig(
    num_layers=2,
    num_single_layers=3,
    num_attention_heads=2,
    attention_head_dim=32,
    joint_attention_dim=40,
    pooled_projection_dim=24,
    axes_dims_rope=(8, 12, 12),
    in_channels=16,
)
SIZES = {
    "dev": DEV,
    "schnell": dataclasses.replace(DEV, guidance_embeds=False),
    "wide": dataclasses.replace(
        DEV,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=3,
        attention_head_dim=64,
        axes_dims_rope=(4, 28, 32),
        in_channels=64,
    ),
}
GRID = (4, 6)


@pytest.fixture(scope="module", params=SIZES)
def case(request):
    config = SIZES[request.param]
    theirs = randomize(diffusers.FluxTransformer2DModel(**config.to_dict()))
    ours = converted(theirs)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    inputs = (
        draw(2, GRID[0] * GRID[1], config.in_channels),
        draw(2, 7, config.joint_attention_dim),
        draw(2, config.pooled_projection_dim),
    )
    return config, theirs, ours, inputs


TIME, GUIDANCE = np.float32([0.4375, 0.99]), np.float32([3.5, 1.0])


def their_velocity(case, dtype):
    config, theirs, _, inputs = case
    ids = torch.from_numpy(position_ids(7, *GRID)).float()
    latents, text, pooled = (torch.from_numpy(x).to(dtype) for x in inputs)
    with torch.no_grad():
        return theirs.to(dtype)(
            hidden_states=latents,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=torch.from_numpy(TIME),
            guidance=torch.from_numpy(GUIDANCE) if config.guidance_embeds else None,
            txt_ids=ids[:7],
            img_ids=ids[7:],
        ).sample.float()


def our_velocity(case, dtype):
    config, _, ours, inputs = case
    rope = rope_table(position_ids(7, *GRID), config)
    model, inputs = cast(ours, dtype), [jnp.asarray(x, dtype) for x in inputs]
    velocity = jax.jit(Flux.__call__)(
        model, *inputs, jnp.asarray(TIME), jnp.asarray(GUIDANCE), rope
    )
    assert velocity.dtype == dtype
    return velocity.astype(jnp.float32)


def test_velocity(case):
    exact = their_velocity(case, torch.float32)
    assert relative(our_velocity(case, jnp.float32), exact) < 1e-5
    their_error = relative(their_velocity(case, torch.bfloat16), exact)
    assert relative(our_velocity(case, jnp.bfloat16), exact) < 1.5 * their_error
