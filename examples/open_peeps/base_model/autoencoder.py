"""The VAE: reconstruction in L1 and L2, and a slight pull of its latents to a unit normal."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped, UInt8
from tqdm import tqdm

from examples.open_peeps.base_model import loss_weights
from examples.open_peeps.base_model.fit import Fit, fit, over_devices
from examples.open_peeps.base_model.pictures import Drawn
from examples.open_peeps.base_model.settings import Settings
from ic_jax.models.vae import Decoder, Vae


def to_unit(pixels: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Bytes to -1..1."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def vae_loss(
    vae: Vae,
    x: Float[Array, "b h w 3"],
    key: Array,
    kl_weight: float,
    weight: Float[Array, "b h w"] | float = 1.0,
) -> Array:
    """L1 + L2 per element of the picture, weighted, and the divergence per element of the
    latents."""
    mean, logvar = vae.encode(x)
    raw = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    divergence = (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean() / 2
    return _error(vae.decode(raw), x, weight) + kl_weight * divergence


def cropped(x: Shaped[Array, "b h h *c"], side: int, key: Array) -> Shaped[Array, "b s s *c"]:
    """The same square of every picture, at a place that follows from the key."""
    top, left = jax.random.randint(key, (2,), 0, x.shape[1] - side + 1)
    rest = x.shape[3:]
    start = (0, top, left, *[0] * len(rest))
    return jax.lax.dynamic_slice(x, start, (len(x), side, side, *rest))


def train_vae(
    settings: Settings, drawn: Drawn, options: Fit, start: Vae | None = None
) -> tuple[Vae, dict[str, Any]]:
    """A VAE whose latents, shifted and scaled, have mean 0 and variance 1; and its figures.

    Trained on squares of `vae_crop` pixels: all but its one attention is convolution, and there is
    more to learn from twice as many pieces than from whole pictures.

    Args:
        start: to train further; by default one of random weights.
    """
    pixels = drawn.pixels
    vae = start or jax.jit(lambda: Vae(settings.vae, rngs=nnx.Rngs(options.seed)))()
    weights = jnp.asarray(loss_weights.weights(settings.side, settings.head_share))

    def loss(vae: Vae, batch: tuple[Array, Array], key: Array) -> Array:
        place, noise = jax.random.split(key)
        x, weight = (cropped(a, settings.vae_crop, place) for a in (batch[0], weights[batch[1]]))
        return vae_loss(vae, to_unit(x), noise, settings.kl_weight, weight)

    data = (pixels, loss_weights.kinds_of(drawn.views))
    vae, curve = fit("vae", vae, loss, data, options)
    mean, logvar = encode_all(vae, pixels[:4096])
    config = dataclasses.replace(
        vae.config,
        shift_factor=round(float(mean.mean()), 4),
        scaling_factor=round(float(1 / np.sqrt(mean.var() + np.exp(logvar).mean())), 4),
    )
    vae.config = config
    return vae, {"loss": curve, "psnr": round(psnr(vae, pixels[:1024]), 2)}


def train_decoder(
    settings: Settings, drawn: Drawn, options: Fit, vae: Vae
) -> tuple[Vae, dict[str, Any]]:
    """The VAE, its decoder trained further and its latents as they were: what was trained to draw
    them stays as good. `vae` is given up."""
    mean, logvar = encode_all(vae, drawn.pixels)
    weights = jnp.asarray(loss_weights.weights(settings.side, settings.head_share))

    def loss(decoder: Decoder, batch: tuple[Array, ...], key: Array) -> Array:
        mean, logvar, x, kind = batch
        raw = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
        return _error(decoder(raw), to_unit(x), weights[kind])

    data = (mean, logvar, drawn.pixels, loss_weights.kinds_of(drawn.views))
    vae.decoder, curve = fit("decoder", vae.decoder, loss, data, options)
    return vae, {"loss": curve, "psnr": round(psnr(vae, drawn.pixels[:1024]), 2)}


def _error(
    made: Float[Array, "b h w 3"],
    x: Float[Array, "b h w 3"],
    weight: Float[Array, "b h w"] | float,
) -> Array:
    error = made - x
    return (weight * (jnp.abs(error) + jnp.square(error)).mean(-1)).mean()


def encode_all(vae: Vae, pixels: np.ndarray, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log-variance of every picture's raw latents, [n, y, x, c]."""
    whole, by_rows = over_devices()
    vae = jax.device_put(vae, whole)
    encode = jax.jit(lambda vae, x: vae.encode(to_unit(x)))
    parts = []
    for x in tqdm(_batches(pixels, batch), desc="encoding", unit="batch", leave=False):
        divides = len(x) % by_rows.num_devices == 0
        parts.append(jax.device_get(encode(vae, jax.device_put(x, by_rows if divides else whole))))
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
