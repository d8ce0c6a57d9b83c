"""FLUX from random weights: flow matching on captions that name everything.

The same objective as the adapter's (`train.objective`), with the transformer as what is trained,
and the text encoders with it where the settings say so.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from examples.open_peeps.base_model import loss_weights
from examples.open_peeps.base_model.autoencoder import encode_all
from examples.open_peeps.base_model.fit import Fit, fit
from examples.open_peeps.base_model.pictures import Drawn
from examples.open_peeps.base_model.settings import Settings
from examples.open_peeps.base_model.word_tokenizer import Files, prompt_ids
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import flow
from ic_jax.config import FluxConfig, SchedulerConfig
from ic_jax.models.clip import ClipText
from ic_jax.models.flux import Flux
from ic_jax.models.rope import Rope, rope_table
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.vae import Vae

# Captions: what a picture shows in full; without who it is, as the adapter's are; or empty.
FULL, SCENE = 0.55, 0.37
KINDS = ("full", "scene", "empty")


class Base(NamedTuple):
    """What draws from a prompt."""

    flux: Flux
    t5: T5Encoder
    clip: ClipText


def fresh_flux(config: FluxConfig, seed: int) -> Flux:
    """Random weights; modulation and output start at zero, so that blocks start as identities
    (adaLN-Zero, arXiv 2212.09748)."""
    flux = jax.jit(lambda: Flux(config, rngs=nnx.Rngs(seed)))()
    double, single = flux.transformer_blocks.blocks, flux.single_transformer_blocks.blocks
    for linear in (double.norm1, double.norm1_context, single.norm, flux.norm_out):
        linear.linear.kernel.set_value(jnp.zeros_like(linear.linear.kernel[...]))
    flux.proj_out.kernel.set_value(jnp.zeros_like(flux.proj_out.kernel[...]))
    return flux


def base_loss(
    base: Base,
    batch: dict[str, Array],
    key: Array,
    rope: Rope,
    shift: float,
    weights: Float[Array, "k y x"],
) -> Array:
    """Mean squared error of the velocity, noise levels as the adapter's training draws them.

    Each latent's expected velocity is what is learnt, whatever its weight: `weights`, by the kind
    of view, say how much effort goes into it.
    """
    keys = jax.random.split(key, 4)
    mean, std = (batch[name].astype(jnp.float32) for name in ("mean", "std"))
    x = flow.pack(mean + std * jax.random.normal(keys[0], mean.shape))
    kind = jax.random.uniform(keys[1], (len(x), 1))  # of caption

    def chosen(name: str) -> Array:
        full, scene, empty = (batch[f"{name}/{k}"] for k in KINDS)
        return jnp.where(kind < FULL, full, jnp.where(kind < FULL + SCENE, scene, empty))

    sigma = jax.nn.sigmoid(jax.random.normal(keys[2], (len(x),)))
    sigma = shift / (shift + 1 / sigma - 1)
    noise, at = jax.random.normal(keys[3], x.shape), sigma[:, None, None]
    noisy = (1 - at) * x + at * noise
    embeds, pooled = base.t5(chosen("t5")), base.clip(chosen("clip"))
    velocity = base.flux(noisy, embeds, pooled, sigma, jnp.ones(len(x)), rope)
    weight = jnp.broadcast_to(weights[batch["view"]][..., None], mean.shape)
    return (flow.pack(weight) * jnp.square(velocity - (noise - x))).mean()


def train_base(
    settings: Settings,
    drawn: Drawn,
    vae: Vae,
    start: Base,
    tokenizers: dict[str, Files],
    options: Fit,
) -> tuple[Base, dict[str, Any]]:
    """Transformer and text encoders, and the figures of their training."""
    data = _encoded(settings, drawn, vae, tokenizers)
    grid = data["mean"].shape[1] // flow.PATCH, data["mean"].shape[2] // flow.PATCH
    rope = rope_table(flow.position_ids(settings.text_length, *grid), settings.flux)
    shift = flow.shift(grid[0] * grid[1], SchedulerConfig())
    cell = vae.config.downscale
    weights = jnp.asarray(loss_weights.weights(settings.side, settings.head_share, cell))
    if settings.text_learnt:

        def loss_of_all(base: Base, batch: dict[str, Array], key: Array) -> Array:
            return base_loss(base, batch, key, rope, shift, weights)

        base, curve = fit("base", start, loss_of_all, data, options)
    else:

        def loss(flux: Flux, batch: dict[str, Array], key: Array) -> Array:
            return base_loss(start._replace(flux=flux), batch, key, rope, shift, weights)

        flux, curve = fit("base", start.flux, loss, data, options)
        base = start._replace(flux=flux)
    return base, {"loss": curve}


def _encoded(
    settings: Settings, drawn: Drawn, vae: Vae, tokenizers: dict[str, Files]
) -> dict[str, np.ndarray]:
    """Latents of the pictures, and ids of their captions of each kind."""
    raw, logvar = encode_all(vae, drawn.pixels)
    data = {"mean": np.asarray(vae.to_latents(jnp.asarray(raw))).astype(np.float16)}
    data["view"] = loss_weights.kinds_of(drawn.views)
    data["std"] = (np.exp(logvar / 2) * vae.config.scaling_factor).astype(np.float16)
    rng, caption = np.random.default_rng((settings.seed, 3)), WORLDS[settings.world].caption
    texts = {
        "full": [caption(v, i, rng) for i, v in zip(drawn.identities, drawn.views, strict=True)],
        "scene": [caption(v, None, rng) for v in drawn.views],
        "empty": [""] * len(drawn.views),
    }
    for kind in KINDS:
        clip_ids, t5_ids = prompt_ids(tokenizers, texts[kind], settings.text_length)
        data[f"clip/{kind}"], data[f"t5/{kind}"] = clip_ids, t5_ids
    return data
