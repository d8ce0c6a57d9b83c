"""Latents of pictures that are drawn over, encoded and noised by one program."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8, UInt32

from ic_jax import flow, sampler
from ic_jax.models.vae import Vae
from ic_jax.sharding import constrain


@partial(jax.jit, static_argnames=("dtype",))
def noised_originals(
    vae: Vae,
    pixels: UInt8[Array, "r h w 3"],
    masks: Bool[Array, "m y x"] | None,
    noise: Float[Array, "b n c"],
    sigma: Float[Array, ""],
    seeds: UInt32[Array, "b"] | None,
    dtype: DTypeLike,
) -> tuple[Float[Array, "b n c"], sampler.Inpainting | None]:
    """Encode r pictures for b drawn over them; return the noised latents, and what masks keep.

    Args:
        vae: the autoencoder.
        pixels: r divides b, and the drawn pictures of one are neighbours.
        masks: likewise, of latents; True is drawn anew.
        noise: packed.
        sigma: level of the noise.
        seeds: choose the samples of the VAE's normal distributions; None takes the means.
        dtype: of the encoder's computation; all else is float32.
    """
    encoded = vae.encode((pixels.astype(jnp.float32) / 127.5 - 1).astype(dtype))
    mean, logvar = (jnp.repeat(x.astype(jnp.float32), len(noise) // len(x), 0) for x in encoded)
    if seeds is not None:

        def unit_normal(seed: Array) -> Array:
            # Another key than that of the noise, which takes the seed's own.
            key = jax.random.fold_in(jax.random.key(seed), 1)
            return jax.random.normal(key, mean.shape[1:], jnp.float32)

        mean = mean + jnp.exp(0.5 * logvar) * jax.vmap(unit_normal)(seeds)
    latents = constrain(flow.pack(vae.to_latents(mean)), None, None, None)  # replicated
    noised = flow.add_noise(latents, noise, sigma)
    if masks is None:
        return noised, None
    rows = jnp.repeat(masks.astype(jnp.float32), len(noise) // len(masks), 0)
    mask = flow.pack(jnp.repeat(rows[..., None], mean.shape[-1], -1))
    return noised, sampler.Inpainting(latents, noise, mask)
