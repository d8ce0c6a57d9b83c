"""The projector, and FLUX with image-prompt attention, against outputs of the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.models.flux import Flux
from ic_jax.models.image_prompt import ImagePrompt
from ic_jax.models.rope import rope_table
from tests.conftest import GOLDENS
from tests.golden import Golden
from tests.oracle import relative


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return Golden(GOLDENS / "adapter.safetensors", tmp_path_factory.mktemp("golden"))


@jax.jit
def tokens(projector, features, t):
    return projector.resampler(projector.gather(features), t)


@pytest.mark.parametrize("i", range(3))
def test_projector(golden, i):
    t = jnp.full(2, golden.config["timesteps"][i], jnp.float32)
    ours, temb = tokens(golden.adapter.image_proj, golden.features("in/"), t)
    assert relative(ours, golden[f"out/{i}/subject_tokens"]) < 1e-5
    assert relative(temb, golden[f"out/{i}/timestep_embedding"]) < 1e-5


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize("j", range(3))
def test_velocity(golden, i, j):
    scale = golden.config["subject_scales"][j]
    ids = np.concatenate([golden["in/txt_ids"], golden["in/img_ids"]])
    prompt = None
    if scale is not None:
        prompt = ImagePrompt(
            golden.adapter.ip_adapter, golden[f"out/{i}/subject_tokens"], jnp.full(2, scale)
        )
    velocity = jax.jit(Flux.__call__)(
        golden.flux,
        golden["in/latents"],
        golden["in/prompt_embeds"],
        golden["in/pooled"],
        jnp.full(2, golden.config["timesteps"][i] / 1000),
        jnp.full(2, golden.config["guidance"]),
        rope_table(ids, golden.flux.config),
        prompt,
    )
    assert relative(velocity, golden[f"out/{i}/velocity/{j}"]) < 1e-5
