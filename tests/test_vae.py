"""The VAE against diffusers on random weights, and against the golden model."""

from functools import cache

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open

from ic_jax.config import VaeConfig
from ic_jax.weights.loading import load_component
from tests.conftest import TINY
from tests.oracle import cast, converted, randomize, relative

CASES = [
    (VaeConfig((8, 16, 16), latent_channels=4, norm_num_groups=4), (24, 16)),
    (VaeConfig((6, 12), latent_channels=3, norm_num_groups=3, layers_per_block=1), (10, 14)),
]


@cache
def pair(config):
    count = len(config.block_out_channels)
    theirs = randomize(
        diffusers.AutoencoderKL(
            **config.to_dict(),
            down_block_types=("DownEncoderBlock2D",) * count,
            up_block_types=("UpDecoderBlock2D",) * count,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )
    return converted(theirs), theirs


def inputs(config, size):
    """Return pixels of a size and latents of the size to match, channels first."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, *size, generator=generator) * 2 - 1
    small = [s // config.downscale for s in size]
    return pixels, torch.randn(2, config.latent_channels, *small, generator=generator)


def channels_last(x, dtype=jnp.float32):
    return jnp.asarray(np.asarray(x.float().permute(0, 2, 3, 1)), dtype)


def torch_both(vae, pixels, latents):
    dtype = next(vae.parameters()).dtype
    with torch.no_grad():
        posterior = vae.encode(pixels.to(dtype)).latent_dist
        decoded = vae.decode(latents.to(dtype)).sample
    return [channels_last(x) for x in (posterior.mean, posterior.logvar, decoded)]


@jax.jit
def both(vae, pixels, raw):
    return *vae.encode(pixels), vae.decode(raw)


@pytest.mark.parametrize(("config", "size"), CASES)
def test_both_ways(config, size):
    ours, theirs = pair(config)
    pixels, latents = inputs(config, size)
    expected = torch_both(theirs, pixels, latents)
    for a, b in zip(
        both(ours, channels_last(pixels), channels_last(latents)), expected, strict=True
    ):
        assert relative(a, b) < 1e-5


def test_bfloat16_is_no_worse_than_torch():
    config, size = CASES[0]
    ours, theirs = pair(config)
    pixels, latents = inputs(config, size)
    exact = torch_both(theirs, pixels, latents)
    torch_low = torch_both(theirs.bfloat16(), pixels, latents)
    theirs.float()
    low = [channels_last(x, jnp.bfloat16) for x in (pixels, latents)]
    for a, b, c in zip(both(cast(ours, jnp.bfloat16), *low), exact, torch_low, strict=True):
        assert relative(a, b) < 1.5 * relative(c, b)


def test_golden(tiny_model):
    vae = load_component(tiny_model, "vae")
    with safe_open(TINY / "expected.safetensors", "pt") as f:
        names = ("pixels", "posterior_mean", "posterior_logvar", "decoded")
        pixels, *expected = (channels_last(f.get_tensor(f"vae/{name}")) for name in names)
    for a, b in zip(both(vae, pixels, expected[0]), expected, strict=True):
        assert relative(a, b) < 1e-5


def test_latents_there_and_back():
    config = CASES[1][0]
    vae = pair(config)[0]
    raw = jnp.full((1, 2, 2, 3), 0.5)
    latents = vae.to_latents(raw)
    assert relative(latents, np.full((1, 2, 2, 3), (0.5 - 0.1159) * 0.3611)) < 1e-6
    assert relative(vae.from_latents(latents), raw) < 1e-6


def test_log_variance_is_clamped():
    vae = pair(CASES[1][0])[0]
    conv = vae.encoder.conv_out
    extreme = jnp.array([0.0, 0.0, 0.0, -100.0, 0.0, 100.0])  # three means, three log-variances
    bias = conv.bias[...]
    conv.bias.set_value(extreme)
    pixels, raw = (jnp.zeros((2, 10, 14, 3)), jnp.zeros((2, 5, 7, 3)))
    logvar = both(vae, pixels, raw)[1]
    conv.bias.set_value(bias)
    assert (logvar[..., 0] == -30).all()
    assert (logvar[..., 2] == 20).all()
