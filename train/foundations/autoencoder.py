"""The VAE: reconstruction in L1 and L2, and a slight pull of its latents to a unit normal."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from ic_jax.config import VaeConfig
from ic_jax.models.vae import Vae
from train.foundations.fit import Fit, fit


def to_unit(pixels: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Bytes to -1..1."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def vae_loss(vae: Vae, x: Float[Array, "b h w 3"], key: Array, kl_weight: float) -> Array:
    """L1 + L2 per element of the picture, and the divergence per element of the latents."""
    mean, logvar = vae.encode(x)
    raw = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    error = vae.decode(raw) - x
    divergence = (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean() / 2
    return jnp.abs(error).mean() + jnp.square(error).mean() + kl_weight * divergence


def cropped(
    pixels: UInt8[Array, "b h h 3"], side: int, key: Array
) -> UInt8[Array, "b {side} {side} 3"]:
    """The same square of every picture, at a random place."""
    top, left = jax.random.randint(key, (2,), 0, pixels.shape[1] - side + 1)
    start = (0, top, left, 0)
    return jax.lax.dynamic_slice(pixels, start, (len(pixels), side, side, pixels.shape[3]))


def train_vae(
    config: VaeConfig,
    pixels: UInt8[np.ndarray, "n h h 3"],
    crop: int,
    kl_weight: float,
    options: Fit,
) -> tuple[Vae, dict[str, Any]]:
    """A VAE whose latents, shifted and scaled, have mean 0 and variance 1; and its figures.

    Trained on squares of `crop` pixels: all but its one attention is convolution, and there is
    more to learn from twice as many pieces than from whole pictures.
    """
    vae = jax.jit(lambda: Vae(config, rngs=nnx.Rngs(options.seed)))()

    def loss(vae: Vae, batch: Array, key: Array) -> Array:
        place, noise = jax.random.split(key)
        return vae_loss(vae, to_unit(cropped(batch, crop, place)), noise, kl_weight)

    vae, curve = fit("vae", vae, loss, pixels, options)
    mean, logvar = encode_all(vae, pixels[:4096])
    config = dataclasses.replace(
        config,
        shift_factor=round(float(mean.mean()), 4),
        scaling_factor=round(float(1 / np.sqrt(mean.var() + np.exp(logvar).mean())), 4),
    )
    vae.config = config
    return vae, {"loss": curve, "psnr": round(psnr(vae, pixels[:1024]), 2)}


def encode_all(vae: Vae, pixels: np.ndarray, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log-variance of every picture's raw latents, [n, y, x, c]."""
    encode = jax.jit(lambda vae, x: vae.encode(to_unit(x)))
    parts = [jax.device_get(encode(vae, x)) for x in _batches(pixels, batch)]
    mean, logvar = (np.concatenate(x) for x in zip(*parts, strict=True))
    return mean, logvar


def psnr(vae: Vae, pixels: np.ndarray) -> float:
    """Decibels between pictures and what comes back of them, in 0..1."""

    def error(vae: Vae, x: Array) -> Array:
        back = jnp.clip(vae.decode(vae.encode(to_unit(x))[0]), -1, 1)
        return jnp.square((back - to_unit(x)) / 2).mean()

    found = [float(jax.jit(error)(vae, x)) for x in _batches(pixels, 256)]
    return float(-10 * np.log10(np.mean(found)))


def _batches(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[n : n + size] for n in range(0, len(x), size)]
