"""Schedule, packing and position ids against diffusers."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from ic_jax import flow
from ic_jax.config import SchedulerConfig

DYNAMIC, STATIC = SchedulerConfig(), SchedulerConfig(use_dynamic_shifting=False, shift=1.7)


@pytest.mark.parametrize("config", [DYNAMIC, STATIC])
@pytest.mark.parametrize("tokens", [64, 1024, 4096])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_schedule(config, tokens, steps):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config.to_dict())
    mu = calculate_shift(tokens) if config.use_dynamic_shifting else None
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    ours = flow.schedule(steps, tokens, config)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.sigmas.numpy(), rtol=1e-6)


def test_given_levels_are_shifted_too():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**DYNAMIC.to_dict())
    levels = [0.9, 0.5, 0.1]
    theirs.set_timesteps(sigmas=levels, mu=calculate_shift(1024))
    np.testing.assert_allclose(flow.schedule(levels, 1024, DYNAMIC), theirs.sigmas, rtol=1e-6)


def test_packing():
    latents = np.random.default_rng(0).standard_normal((2, 6, 8, 4), np.float32)
    theirs = diffusers.FluxPipeline._pack_latents(
        torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous(), 2, 4, 6, 8
    )
    packed = flow.pack(jnp.asarray(latents))
    np.testing.assert_array_equal(packed, theirs.numpy())
    np.testing.assert_array_equal(flow.unpack(packed, 6, 8), latents)


def test_position_ids():
    theirs = diffusers.FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    ids = flow.position_ids(4, 3, 5)
    np.testing.assert_array_equal(ids[4:], theirs.numpy())
    assert not ids[:4].any()
