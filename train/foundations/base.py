"""FLUX from random weights: flow matching on captions that name everything.

The same objective as the adapter's (`train.objective`), with the transformer as what is trained.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from ic_jax import flow
from ic_jax.config import FluxConfig, SchedulerConfig
from ic_jax.models.clip import ClipText
from ic_jax.models.flux import Flux
from ic_jax.models.rope import Rope, rope_table
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.vae import Vae
from train.foundations.autoencoder import encode_all
from train.foundations.fit import Fit, fit
from train.foundations.pictures import Drawn
from train.foundations.settings import Settings
from train.foundations.words import prompt_ids
from train.foundations.world import caption

# Captions: what a picture shows in full; without who it is, as the adapter's are; or empty.
FULL, SCENE = 0.75, 0.15


def fresh_flux(config: FluxConfig, seed: int) -> Flux:
    """Random weights; modulation and output start at zero, so that blocks start as identities
    (adaLN-Zero, arXiv 2212.09748)."""
    flux = jax.jit(lambda: Flux(config, rngs=nnx.Rngs(seed)))()
    double, single = flux.transformer_blocks.blocks, flux.single_transformer_blocks.blocks
    for linear in (double.norm1, double.norm1_context, single.norm, flux.norm_out):
        linear.linear.kernel.set_value(jnp.zeros_like(linear.linear.kernel[...]))
    flux.proj_out.kernel.set_value(jnp.zeros_like(flux.proj_out.kernel[...]))
    return flux


def base_loss(flux: Flux, batch: dict[str, Array], key: Array, rope: Rope, shift: float) -> Array:
    """Mean squared error of the velocity, noise levels as the adapter's training draws them."""
    keys = jax.random.split(key, 4)
    mean, std = batch["mean"], batch["std"]
    x = flow.pack(mean + std * jax.random.normal(keys[0], mean.shape))
    kind = jax.random.uniform(keys[1], (len(x),))  # of caption

    def chosen(name: str) -> Array:
        full, scene, empty = (batch[f"{name}/{k}"] for k in ("full", "scene", "empty"))
        at = kind.reshape(-1, *[1] * (full.ndim - 1))
        return jnp.where(at < FULL, full, jnp.where(at < FULL + SCENE, scene, empty))

    sigma = jax.nn.sigmoid(jax.random.normal(keys[2], (len(x),)))
    sigma = shift / (shift + 1 / sigma - 1)
    noise, at = jax.random.normal(keys[3], x.shape), sigma[:, None, None]
    noisy = (1 - at) * x + at * noise
    guidance = jnp.ones(len(x))
    velocity = flux(noisy, chosen("embeds"), chosen("pooled"), sigma, guidance, rope)
    return jnp.square(velocity - (noise - x)).mean()


def train_base(
    settings: Settings,
    drawn: Drawn,
    vae: Vae,
    encoders: tuple[T5Encoder, ClipText],
    tokenizers: dict[str, str],
    options: Fit,
) -> tuple[Flux, dict[str, Any]]:
    """The trained transformer and its figures."""
    raw, logvar = encode_all(vae, drawn.pixels)
    data = {"mean": np.asarray(vae.to_latents(jnp.asarray(raw)))}
    data["std"] = np.exp(logvar / 2) * vae.config.scaling_factor
    captions = {
        "full": [caption(v, i) for i, v in zip(drawn.identities, drawn.views, strict=True)],
        "scene": [caption(v) for v in drawn.views],
        "empty": [""] * len(drawn.views),
    }
    for kind, texts in captions.items():
        found = _embedded(encoders, tokenizers, texts, settings.text_length)
        data[f"embeds/{kind}"], data[f"pooled/{kind}"] = found
    grid = data["mean"].shape[1] // flow.PATCH, data["mean"].shape[2] // flow.PATCH
    config = settings.flux
    rope = rope_table(flow.position_ids(settings.text_length, *grid), config)
    shift = flow.shift(grid[0] * grid[1], SchedulerConfig())

    def loss(flux: Flux, batch: dict[str, Array], key: Array) -> Array:
        return base_loss(flux, batch, key, rope, shift)

    flux, curve = fit("base", fresh_flux(config, options.seed), loss, data, options)
    return flux, {"loss": curve}


def _embedded(
    encoders: tuple[T5Encoder, ClipText], tokenizers: dict[str, str], texts: list[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """T5's embeddings and CLIP's pooled ones; each different text is encoded once."""
    different, which = np.unique(texts, return_inverse=True)
    clip_ids, t5_ids = prompt_ids(tokenizers, [str(text) for text in different], length)

    @jax.jit
    def encode(t5: T5Encoder, clip: ClipText, t5_ids: Array, clip_ids: Array) -> tuple:
        return t5(t5_ids), clip(clip_ids)

    starts = range(0, len(different), 512)
    ids = [(t5_ids[n : n + 512], clip_ids[n : n + 512]) for n in starts]
    parts = [jax.device_get(encode(*encoders, *some)) for some in ids]
    embeds, pooled = (np.concatenate(x) for x in zip(*parts, strict=True))
    return embeds[which], pooled[which]
