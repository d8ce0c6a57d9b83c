"""Training of FLUX from random weights: flow matching on captions that describe everything.

The objective is the adapter's (`train.objective`); here it trains the transformer, and the text
encoders too where the config says so.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from examples.open_peeps.base_model import loss_weights
from examples.open_peeps.base_model.autoencoder import encode_all
from examples.open_peeps.base_model.config import BaseModelConfig
from examples.open_peeps.base_model.fit import FitOptions, dtype_of, fit
from examples.open_peeps.base_model.renders import Renders
from examples.open_peeps.base_model.word_tokenizer import Files, prompt_ids
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import flow
from ic_jax.config import FluxConfig, SchedulerConfig
from ic_jax.models.clip import ClipText
from ic_jax.models.flux import Flux
from ic_jax.models.rope import Rope, rope_table
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.vae import Vae

# Shares of captions that describe everything, and of those without identity, as in the adapter's
# training; the rest are empty.
FULL, SCENE = 0.55, 0.37
CAPTIONS = ("full", "scene", "empty")


class TextToImage(NamedTuple):
    """Transformer and text encoders."""

    flux: Flux
    t5: T5Encoder
    clip: ClipText


def fresh_flux(config: FluxConfig, seed: int) -> Flux:
    """Return random weights with zero modulation and output, so that blocks start as identities.

    This is adaLN-Zero (arXiv 2212.09748).
    """
    flux = jax.jit(lambda: Flux(config, rngs=nnx.Rngs(seed)))()
    double, single = flux.transformer_blocks.blocks, flux.single_transformer_blocks.blocks
    for linear in (double.norm1, double.norm1_context, single.norm, flux.norm_out):
        linear.linear.kernel.set_value(jnp.zeros_like(linear.linear.kernel[...]))
    flux.proj_out.kernel.set_value(jnp.zeros_like(flux.proj_out.kernel[...]))
    return flux


def base_loss(
    base: TextToImage,
    batch: dict[str, Array],
    key: Array,
    rope: Rope,
    shift: float,
    weight: Float[Array, "b y x"],
) -> Array:
    """Return the weighted mean squared error of the velocity.

    Noise levels are sampled as in the adapter's training. The weights do not change the optimum,
    which is each latent's expected velocity.
    """
    keys = jax.random.split(key, 4)
    mean, std = (batch[name].astype(jnp.float32) for name in ("mean", "std"))
    x = flow.pack(mean + std * jax.random.normal(keys[0], mean.shape))
    u = jax.random.uniform(keys[1], (len(x), 1))

    def caption_ids(encoder: str) -> Array:
        full, scene, empty = (batch[f"{encoder}/{caption}"] for caption in CAPTIONS)
        return jnp.where(u < FULL, full, jnp.where(u < FULL + SCENE, scene, empty))

    sigma = jax.nn.sigmoid(jax.random.normal(keys[2], (len(x),)))
    sigma = shift / (shift + 1 / sigma - 1)
    noise, at = jax.random.normal(keys[3], x.shape), sigma[:, None, None]
    noisy = ((1 - at) * x + at * noise).astype(dtype_of(base.flux))
    embeds, pooled = base.t5(caption_ids("t5")), base.clip(caption_ids("clip"))
    velocity = base.flux(noisy, embeds, pooled, sigma, jnp.ones(len(x)), rope)
    weight = jnp.broadcast_to(weight.astype(jnp.float32)[..., None], mean.shape)
    return (flow.pack(weight) * jnp.square(velocity.astype(jnp.float32) - (noise - x))).mean()


def train_base(
    config: BaseModelConfig,
    renders: Renders,
    vae: Vae,
    start: TextToImage,
    tokenizers: dict[str, Files],
    options: FitOptions,
) -> tuple[TextToImage, dict[str, Any]]:
    """Return the trained transformer and text encoders, and the figures of their training."""
    data = _encode(config, renders, vae, tokenizers)
    grid = data["mean"].shape[1] // flow.PATCH, data["mean"].shape[2] // flow.PATCH
    rope = rope_table(flow.position_ids(config.text_length, *grid), config.flux)
    shift = flow.shift(grid[0] * grid[1], SchedulerConfig())
    cell = vae.config.downscale
    squares = renders.pixels.shape[2] // renders.pixels.shape[1]
    of_square = loss_weights.weights(config.side, config.head_share, cell)
    weights = jnp.asarray(np.tile(of_square, (1, 1, squares)))
    if config.train_text:

        def joint_loss(base: TextToImage, batch: dict[str, Array], key: Array) -> Array:
            return base_loss(base, batch, key, rope, shift, weights[batch["view"]])

        base, curve = fit("base", start, joint_loss, data, options)
    else:

        def loss(flux: Flux, batch: dict[str, Array], key: Array) -> Array:
            models = start._replace(flux=flux)
            return base_loss(models, batch, key, rope, shift, weights[batch["view"]])

        flux, curve = fit("base", start.flux, loss, data, options)
        base = start._replace(flux=flux)
    return base, {"loss": curve}


def _encode(
    config: BaseModelConfig, renders: Renders, vae: Vae, tokenizers: dict[str, Files]
) -> dict[str, np.ndarray]:
    """Return latents of the renders, and token ids of their captions of each kind."""
    raw, logvar = encode_all(vae, renders.pixels)
    data = {"mean": np.asarray(vae.to_latents(jnp.asarray(raw))).astype(np.float16)}
    data["view"] = loss_weights.kind_indices(renders.views)
    data["std"] = (np.exp(logvar / 2) * vae.config.scaling_factor).astype(np.float16)
    rng, caption = np.random.default_rng((config.seed, 3)), WORLDS[config.world].caption
    texts = {
        "full": [
            caption(view, identity if alike else None, rng)
            for _, identity, view, alike in zip(*renders, strict=True)
        ],
        "scene": [caption(v, None, rng) for v in renders.views],
        "empty": [""] * len(renders.views),
    }
    for name in CAPTIONS:
        clip_ids, t5_ids = prompt_ids(tokenizers, texts[name], config.text_length)
        data[f"clip/{name}"], data[f"t5/{name}"] = clip_ids, t5_ids
    return data
