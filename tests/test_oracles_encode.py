"""Inputs of a training step against diffusers and closed forms: latents, draws, weights.

The random draws are judged over 10 000 rows at fixed seeds, so that no test depends on luck: a
share must lie within four standard deviations, a distribution within the 1% bound of Kolmogorov
and Smirnov.
"""

from statistics import NormalDist

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from flax import nnx

from ic_jax import flow
from ic_jax.config import CONFIGS, SchedulerConfig, VaeConfig
from ic_jax.models.features import IMAGENET_SCALE, SIGLIP_SCALE, normalize
from ic_jax.weights.loading import abstract
from train.data.encoded_store import Embeddings, LatentPosterior
from train.encode import (
    Frozen,
    StepBatch,
    StepScalars,
    encode,
    latent_posterior,
    noise_levels,
    row_keys,
)

ROWS, SHAPE = 10_000, (2, 2, 3)
TEXT, SUBJECT, GUIDANCE, SHIFT = 0.3, 0.1, 2.5, 3.0
EMPTY = Embeddings(jnp.full((2, 3), -1.0), jnp.full((3,), -1.0))


def scalars(**changes):
    values = {
        "learning_rate": 1e-4,
        "shift": SHIFT,
        "guidance": GUIDANCE,
        "text_dropout": TEXT,
        "subject_dropout": SUBJECT,
        "ema": 0.9,
        "focus": 0.0,
    }
    return StepScalars(**{k: jnp.float32(v) for k, v in (values | changes).items()})


def batch(rows, mean=0.0, std=1.0, density=None):
    numbers = jnp.arange(rows, dtype=jnp.float32)
    prompt = Embeddings(
        jnp.broadcast_to(numbers[:, None, None], (rows, 2, 3)),
        jnp.broadcast_to(numbers[:, None], (rows, 3)),
    )
    target = LatentPosterior(
        *(jnp.broadcast_to(jnp.float32(x), (rows, *SHAPE)) for x in (mean, std))
    )
    return StepBatch(target, prompt, None, density)


@jax.jit
def compiled_encode(inputs, seed, step, values):
    frozen = Frozen(None, None, None, None, None, None)
    keys = row_keys(seed, step, inputs)
    return encode(frozen, inputs, keys, EMPTY, values, None, "logit-normal", jnp.float32)


def encoded(rows=ROWS, *, seed=0, step=5, mean=0.0, std=1.0, density=None, **changes):
    """Encode `rows` rows; those of one number compile once."""
    inputs = batch(rows, mean, std, density)
    return compiled_encode(inputs, jnp.int32(seed), jnp.int32(step), scalars(**changes))


@pytest.fixture(scope="module")
def examples():
    return encoded()


class EveryOther(torch.nn.Module):
    """A picture's even pixels as means, its odd ones as log-variances, for diffusers."""

    def forward(self, x):
        return torch.cat([x[:, :, ::2, ::2], 4 * x[:, :, 1::2, 1::2] - 2], dim=1)


def every_other(x):
    return jnp.concatenate([x[:, ::2, ::2], 4 * x[:, 1::2, 1::2] - 2], axis=-1)


def test_pixels_to_latents_are_the_posterior_of_diffusers():
    sizes = {"block_out_channels": (4, 4), "latent_channels": 3, "norm_num_groups": 2}
    ours = abstract("vae", VaeConfig(**sizes))
    ours.encoder = nnx.static(every_other)
    theirs = diffusers.AutoencoderKL(
        **sizes,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    theirs.encoder = EveryOther()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    pixels[0, :2] = [0, 127, 255]
    images = VaeImageProcessor(do_resize=False).preprocess(pixels.astype(np.float32) / 255)
    posterior = theirs.encode(images).latent_dist
    # FluxPipeline: (x - shift_factor) * scaling_factor, with the numbers of FLUX.1-dev.
    published = CONFIGS["flux-vae"]
    assert (published.shift_factor, published.scaling_factor) == (0.1159, 0.3611)
    mean, std = jax.jit(lambda x: latent_posterior(ours, x, jnp.float32))(pixels)
    expected = (posterior.mean - 0.1159) * 0.3611, posterior.std * 0.3611
    for a, b in zip((mean, std), expected, strict=True):
        np.testing.assert_allclose(a, b.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_a_latent_is_mean_plus_deviation_times_a_normal_draw(examples):
    z = np.asarray(examples.latents)
    shifted = encoded(mean=0.5, std=0.25)
    np.testing.assert_allclose(shifted.latents, 0.5 + 0.25 * z, rtol=1e-6, atol=1e-6)
    certain = encoded(mean=np.arange(12, dtype=np.float32).reshape(SHAPE), std=0.0)
    cells = np.arange(12, dtype=np.float32).reshape(1, *SHAPE).transpose(0, 3, 1, 2)
    packed = diffusers.FluxPipeline._pack_latents(torch.from_numpy(cells.copy()), 1, 3, 2, 2)
    assert (np.asarray(certain.latents) == packed.numpy()).all()


def ks(sample, cdf):
    """Return the distance of Kolmogorov and Smirnov, times the root of the sample's size."""
    u, n = cdf(np.sort(np.asarray(sample, np.float64).ravel())), np.size(sample)
    steps = np.arange(n + 1) / n
    return max(np.abs(u - steps[1:]).max(), np.abs(u - steps[:-1]).max()) * n**0.5


def normal_cdf(x):
    return np.array([NormalDist().cdf(v) for v in x])


def correlation(a, b):
    """Return the correlation in standard deviations of that of independent numbers."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return abs(np.corrcoef(a, b)[0, 1]) * len(a) ** 0.5


def test_noise_and_posterior_samples_are_normal_and_independent(examples):
    z, noise = np.asarray(examples.latents), np.asarray(examples.noise)
    assert ks(z[:, 0, 0], normal_cdf) < 1.63
    assert ks(noise[:, 0, 0], normal_cdf) < 1.63
    for draw in (z, noise):
        assert abs(draw.std() - 1) < 0.01
        assert correlation(draw[:, 0, 0], draw[:, 0, 1]) < 4
        assert correlation(draw[1:], draw[:-1]) < 4  # from row to row
    assert correlation(z, noise) < 4
    assert correlation(np.abs(z), np.abs(noise)) < 4
    for name in ("latents", "noise"):
        values = np.asarray(getattr(examples, name)).mean((1, 2))
        assert correlation(values, examples.sigma) < 4
        assert correlation(values, examples.subject_scale) < 4


def test_noise_levels_have_the_published_distributions():
    keys = jax.random.split(jax.random.key(1), ROWS)
    one = jnp.float32(1)
    logit = np.asarray(noise_levels(keys, "logit-normal", one), np.float64)
    assert ks(np.log(logit / (1 - logit)), normal_cdf) < 1.63
    for share in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        expected = 1 / (1 + np.exp(-NormalDist().inv_cdf(share)))
        assert np.quantile(logit, share) == pytest.approx(expected, abs=0.015)
    uniform = np.asarray(noise_levels(keys, "uniform", one), np.float64)
    assert ks(uniform, lambda x: (x - 1e-3) / (1 - 2e-3)) < 1.63
    assert 1e-3 <= uniform.min() < 1.5e-3
    assert 1 - 1.5e-3 < uniform.max() <= 1 - 1e-3


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_shifted_noise_levels_lie_on_the_published_schedule(tokens):
    """Compare with diffusers' shift of the same levels, as its training scripts apply it."""
    keys = jax.random.split(jax.random.key(1), ROWS)
    config = SchedulerConfig()
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config.to_dict())
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)  # SPEC.md: a line, 256 to 4096
    plain = np.asarray(noise_levels(keys, "uniform", jnp.float32(1)))
    shifted = noise_levels(keys, "uniform", jnp.float32(flow.shift(tokens, config)))
    expected = theirs.time_shift(mu, 1.0, torch.from_numpy(plain.copy()))
    np.testing.assert_allclose(shifted, expected, rtol=1e-5)
    median = np.median(np.asarray(encoded(shift=flow.shift(tokens, config)).sigma))
    assert median == pytest.approx(1 / (1 + np.exp(-mu)), abs=0.02)


def test_dropouts_have_their_rates_and_are_independent(examples):
    prompt, pooled = np.asarray(examples.prompt_embeds), np.asarray(examples.pooled)
    text = prompt[:, 0, 0] == -1
    assert (prompt == np.where(text, -1, np.arange(ROWS))[:, None, None]).all()
    assert (pooled == np.where(text, -1, np.arange(ROWS))[:, None]).all()
    subject = np.asarray(examples.subject_scale) == 0
    assert set(np.unique(examples.subject_scale)) == {0.0, 1.0}
    both = {"text": (text, TEXT), "subject": (subject, SUBJECT)}
    both["both"] = (text & subject, TEXT * SUBJECT)
    for name, (dropped, rate) in both.items():
        deviation = (rate * (1 - rate) / ROWS) ** 0.5
        assert abs(dropped.mean() - rate) < 4 * deviation, name
    for dropped in (text, subject):
        assert correlation(dropped, examples.sigma) < 4
        assert correlation(dropped[1:], dropped[:-1]) < 4


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_dropouts_of_none_and_all(rate):
    for name, other in (("text_dropout", "subject_dropout"), ("subject_dropout", "text_dropout")):
        e = encoded(**{name: rate, other: 1 - rate})
        text = (np.asarray(e.prompt_embeds[:, 0, 0]) == -1).mean()
        subject = (np.asarray(e.subject_scale) == 0).mean()
        assert (text, subject) == ((rate, 1 - rate) if "text" in name else (1 - rate, rate))


def test_keys_are_of_seed_step_and_row():
    inputs = {rows: batch(rows) for rows in (10, 100)}

    def keys(seed, step, rows=100):
        made = jax.jit(row_keys)(jnp.int32(seed), jnp.int32(step), inputs[rows])
        return np.asarray(jax.random.key_data(made))

    every = [keys(seed, step) for seed in (0, 1, 7) for step in (0, 1, 2, 1000)]
    assert len(np.unique(np.concatenate(every), axis=0)) == 12 * 100
    np.testing.assert_array_equal(keys(0, 1, rows=10), keys(0, 1)[:10])
    root = jax.random.fold_in(jax.random.key(7), 1000)
    row = jax.random.key_data(jax.random.fold_in(root, 42))
    np.testing.assert_array_equal(keys(7, 1000)[42], row)


def test_draws_are_of_seed_step_and_row(examples):
    fields = ("latents", "noise", "sigma")
    fewer = encoded(10)
    for name in fields:
        ours = np.asarray(getattr(examples, name))[:10]
        np.testing.assert_allclose(getattr(fewer, name), ours, rtol=1e-6)
        for other in (encoded(step=6), encoded(seed=1)):
            assert (np.asarray(getattr(other, name))[:10] != ours).all()


def test_guidance_is_the_stages(examples):
    assert (np.asarray(examples.guidance) == GUIDANCE).all()
    assert (np.asarray(encoded(guidance=1.0).guidance) == 1.0).all()


def test_focus_weighs_the_errors_of_its_latents_and_has_mean_1():
    density = np.float32([[[4, 0], [0, 0]], [[1, 1], [2, 0]], [[1, 1], [1, 1]]])
    for share in (0.0, 0.4, 1.0):
        weight = np.asarray(encoded(3, density=jnp.asarray(density), focus=share).weight)
        np.testing.assert_allclose(weight.mean((1, 2)), 1, rtol=1e-6)
        # Packed as the latents are: by channel, then row, then column.
        expected = 1 + share * (np.tile(density.reshape(3, 1, 4), (1, 3, 1)) - 1)
        np.testing.assert_allclose(weight, expected.reshape(3, 1, 12), rtol=1e-6)
    assert encoded().weight is None


@pytest.mark.parametrize("scale", [SIGLIP_SCALE, IMAGENET_SCALE])
def test_pixels_of_the_image_encoders(scale):
    siglip = ((0.5,) * 3, (0.5,) * 3)  # of google/siglip-so400m-patch14-384
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of facebook/dinov2-giant
    assert scale in (siglip, imagenet)
    assert SIGLIP_SCALE != IMAGENET_SCALE
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    mean, std = (np.array(x) for x in scale)
    expected = (pixels / 255 - mean) / std
    ours = normalize(jnp.asarray(pixels), *scale, jnp.float32)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
