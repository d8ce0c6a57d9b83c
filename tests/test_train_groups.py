"""Training on pictures of several characters: the step against the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax import flow, sampler
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.rope import rope_table
from tests.conftest import GOLDENS
from tests.golden import Golden
from tests.oracle import relative
from train.objective import Examples, velocity

TEXT = 7  # tokens


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return Golden(GOLDENS / "training.safetensors", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def rope(golden):
    return rope_table(flow.position_ids(TEXT, *golden.config["grid"]), golden.flux.config)


@pytest.fixture(scope="module")
def adapter(golden):
    """The golden adapter with values that are not zero, as after some training."""
    return golden.adapter_at("after/")


@pytest.fixture(scope="module")
def group(golden) -> Examples:
    """The golden examples, each with its own subject and the next example's, in regions."""
    at = "step/0/in/"
    latents = golden[at + "latents"]
    b, n, _ = latents.shape
    pairs = np.stack([np.arange(b), (np.arange(b) + 1) % b], axis=1).reshape(-1)
    return Examples(
        latents=latents,
        noise=golden[at + "noise"],
        sigma=jnp.full(b, 0.6),
        prompt_embeds=golden[at + "prompt_embeds"],
        pooled=golden[at + "pooled"],
        features=SubjectFeatures(*(x[pairs] for x in golden.features(at))),
        subject_scale=jnp.ones(b),
        guidance=jnp.full(b, golden.config["guidance"]),
        regions=jnp.asarray(np.random.default_rng(0).uniform(0, 1, (b, 2, n)), jnp.float32),
    )


predict = jax.jit(velocity)


def test_a_step_predicts_what_sampling_computes_with_regions(golden, adapter, rope, group):
    b, sigma = len(group.sigma), 0.6
    request = sampler.SamplingRequest(
        latents=(1 - sigma) * group.latents + sigma * group.noise,
        prompt=sampler.TextEmbeddings(group.prompt_embeds, group.pooled),
        guidance_scale=group.guidance,
        sigmas=jnp.array([sigma, 0.5]),
        rope=rope,
        subject=sampler.Subject(
            group.features,
            jnp.ones((b, 2)),
            pictures=jnp.arange(2 * b, dtype=jnp.int32).reshape(b, 2, 1),
            regions=group.regions,
        ),
    )
    drawn = jax.jit(sampler.sample)(golden.flux, adapter, request)
    expected = (drawn - request.latents) / (0.5 - sigma)
    ours = predict(adapter, golden.flux, group, rope)
    assert relative(ours, expected) < 1e-5
    swapped = predict(adapter, golden.flux, group._replace(regions=group.regions[:, ::-1]), rope)
    assert relative(swapped, expected) > 1e-3  # a subject acts in its region


def test_a_subject_everywhere_beside_nobody_is_a_single_subject(golden, adapter, rope, group):
    group = group._replace(sigma=jnp.linspace(0.2, 0.8, len(group.sigma)))
    first = SubjectFeatures(*(x[::2] for x in group.features))
    single = predict(adapter, golden.flux, group._replace(features=first, regions=None), rope)
    alone = jnp.zeros_like(group.regions).at[:, 0].set(1.0)
    ours = predict(adapter, golden.flux, group._replace(regions=alone), rope)
    assert relative(ours, single) < 1e-5
    dropped = group._replace(subject_scale=jnp.zeros_like(group.subject_scale))
    without = predict(adapter, golden.flux, dropped, rope)
    nowhere = predict(adapter, golden.flux, group._replace(regions=0 * alone), rope)
    assert relative(nowhere, without) < 1e-6
    assert relative(single, without) > 1e-3
