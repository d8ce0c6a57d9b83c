"""Training of the VAE: L1 and L2 reconstruction, and a small KL divergence to a unit normal."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped, UInt8
from tqdm import tqdm

from examples.open_peeps.base_model import loss_weights
from examples.open_peeps.base_model.config import BaseModelConfig
from examples.open_peeps.base_model.fit import FitOptions, device_shardings, dtype_of, fit
from examples.open_peeps.base_model.renders import Renders
from ic_jax.models.vae import Decoder, Vae


def to_unit(pixels: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Convert bytes to -1..1."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def vae_loss(
    vae: Vae,
    x: Float[Array, "b h w 3"],
    key: Array,
    kl_weight: float,
    weight: Float[Array, "b h w"] | float = 1.0,
) -> Array:
    """Return the weighted L1 + L2 error per pixel channel, plus the KL divergence per latent."""
    dtype = dtype_of(vae)
    mean, logvar = (y.astype(jnp.float32) for y in vae.encode(x.astype(dtype)))
    raw = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    divergence = (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean() / 2
    return _error(vae.decode(raw.astype(dtype)), x, weight) + kl_weight * divergence


def crop(x: Shaped[Array, "b h h *c"], side: int, key: Array) -> Shaped[Array, "b s s *c"]:
    """Return the same random square of `side` pixels of every picture."""
    top, left = jax.random.randint(key, (2,), 0, x.shape[1] - side + 1)
    rest = x.shape[3:]
    start = (0, top, left, *[0] * len(rest))
    return jax.lax.dynamic_slice(x, start, (len(x), side, side, *rest))


def train_vae(
    config: BaseModelConfig, renders: Renders, options: FitOptions, start: Vae | None = None
) -> tuple[Vae, dict[str, Any]]:
    """Return a VAE whose shifted and scaled latents have mean 0 and variance 1, and its figures.

    The VAE is trained on squares of `vae_crop` pixels: all layers but one attention are
    convolutions, and more small crops teach more than fewer whole pictures.

    Args:
        start: the VAE to continue from; by default random weights.
    """
    pixels = renders.pixels
    vae = start or jax.jit(lambda: Vae(config.vae, rngs=nnx.Rngs(options.seed)))()
    weights = jnp.asarray(loss_weights.weights(config.side, config.head_share))

    def loss(vae: Vae, batch: tuple[Array, Array], key: Array) -> Array:
        position, noise = jax.random.split(key)
        x, weight = (crop(a, config.vae_crop, position) for a in (batch[0], weights[batch[1]]))
        return vae_loss(vae, to_unit(x), noise, config.kl_weight, weight)

    data = (pixels, loss_weights.kind_indices(renders.views))
    vae, curve = fit("vae", vae, loss, data, options)
    standardize(vae, pixels[:4096])
    return vae, {"loss": curve, "psnr": round(psnr(vae, pixels[:1024]), 2)}


def standardize(vae: Vae, pixels: UInt8[np.ndarray, "n h h 3"]) -> None:
    """Shift and scale the latents so that those of some pictures have mean 0 and variance 1."""
    mean, logvar = encode_all(vae, pixels)
    vae.config = dataclasses.replace(
        vae.config,
        shift_factor=round(float(mean.mean()), 4),
        scaling_factor=round(float(1 / np.sqrt(mean.var() + np.exp(logvar).mean())), 4),
    )


def train_decoder(
    config: BaseModelConfig, renders: Renders, options: FitOptions, vae: Vae
) -> tuple[Vae, dict[str, Any]]:
    """Continue to train the decoder alone, which leaves models that generate latents valid.

    The buffers of `vae` are donated.
    """
    mean, logvar = encode_all(vae, renders.pixels)
    weights = jnp.asarray(loss_weights.weights(config.side, config.head_share))

    def loss(decoder: Decoder, batch: tuple[Array, ...], key: Array) -> Array:
        mean, logvar, x, kind = batch
        raw = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
        return _error(decoder(raw), to_unit(x), weights[kind])

    data = (mean, logvar, renders.pixels, loss_weights.kind_indices(renders.views))
    vae.decoder, curve = fit("decoder", vae.decoder, loss, data, options)
    return vae, {"loss": curve, "psnr": round(psnr(vae, renders.pixels[:1024]), 2)}


def _error(
    decoded: Float[Array, "b h w 3"],
    x: Float[Array, "b h w 3"],
    weight: Float[Array, "b h w"] | float,
) -> Array:
    error = decoded.astype(jnp.float32) - x
    return (weight * (jnp.abs(error) + jnp.square(error)).mean(-1)).mean()


def encode_all(vae: Vae, pixels: np.ndarray, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and log-variance of the raw latents of every picture, [n, y, x, c]."""
    replicated, by_rows = device_shardings()
    vae = jax.device_put(vae, replicated)
    encode = jax.jit(lambda vae, x: vae.encode(to_unit(x)))
    parts = []
    for x in tqdm(_batches(pixels, batch), desc="encoding", unit="batch", leave=False):
        divides = len(x) % by_rows.num_devices == 0
        parts.append(
            jax.device_get(encode(vae, jax.device_put(x, by_rows if divides else replicated)))
        )
    mean, logvar = (np.concatenate(x) for x in zip(*parts, strict=True))
    return mean, logvar


def psnr(vae: Vae, pixels: np.ndarray) -> float:
    """Return the reconstruction's peak signal-to-noise ratio in decibels, for pixels in 0..1."""

    def error(vae: Vae, x: Array) -> Array:
        decoded = jnp.clip(vae.decode(vae.encode(to_unit(x))[0]), -1, 1)
        return jnp.square((decoded - to_unit(x)) / 2).mean()

    errors = [float(jax.jit(error)(vae, x)) for x in _batches(pixels, 256)]
    return float(-10 * np.log10(np.mean(errors)))


def _batches(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[n : n + size] for n in range(0, len(x), size)]
