"""Training of the two image encoders, by two different objectives.

SigLIP learns to match captions with pictures (sigmoid loss, arXiv 2303.15343): semantic features.
The encoder in DINOv2's place learns to complete half-hidden pictures (masked image modelling,
arXiv 2111.09886): dense features. Both see figures on white, whole and in tiles, as the adapter
shows them to the encoders.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from examples.open_peeps.base_model.config import EVEN_ODDS, BaseModelConfig
from examples.open_peeps.base_model.fit import FitOptions, dtype_of, fit
from examples.open_peeps.base_model.renders import Renders
from examples.open_peeps.base_model.word_tokenizer import Files, prompt_ids
from examples.open_peeps.world.worlds import WORLDS
from ic_jax.config import ClipConfig, Dinov2Config, SiglipConfig
from ic_jax.models.clip import ClipText
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.features import IMAGENET_SCALE, SIGLIP_SCALE, normalize
from ic_jax.models.layers import Linear
from ic_jax.models.siglip import SiglipVision

HIDDEN = 0.5  # share of hidden patches


class CaptionMatcher(nnx.Module):
    """Image tower with a text tower; the text tower is discarded after training."""

    def __init__(self, config: SiglipConfig, clip: ClipConfig, *, rngs: nnx.Rngs):
        self.vision = SiglipVision(config, rngs=rngs)
        self.text = ClipText(clip, rngs=rngs)
        self.to_text = Linear(
            config.hidden_size, clip.hidden_size, axes=(None, None), bias=False, rngs=rngs
        )
        # The paper's initial values: nearly all pairs are mismatches.
        self.scale = nnx.Param(jnp.array(math.log(10.0)))
        self.bias = nnx.Param(jnp.array(-10.0))

    def __call__(
        self, pixels: Float[Array, "b h w 3"], ids: Int[Array, "b n"]
    ) -> Float[Array, "b b"]:
        """Return the logit of each picture with each caption."""
        a, b = self.to_text(self.vision(pixels)[0].mean(1)), self.text(ids)
        # float32 whatever the models have: bfloat16 hardly tells similar people's logits apart.
        a, b, scale, bias = (x.astype(jnp.float32) for x in (a, b, self.scale[...], self.bias[...]))
        a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        return jnp.exp(scale) * a @ b.T + bias


def train_siglip(
    config: BaseModelConfig,
    renders: Renders,
    clip: ClipConfig,
    tokenizers: dict[str, Files],
    options: FitOptions,
    tower: SiglipVision | None = None,
) -> tuple[SiglipVision, dict[str, Any]]:
    """Return the image tower, and its figures.

    Args:
        renders: references with five crops each (`render_references`).
        clip: config of the text tower.
        tower: the image tower to continue from; by default random weights.
    """
    rng, describe = np.random.default_rng((config.seed, 4)), WORLDS[config.world].describe
    texts = [describe(v, i, rng) for i, v in zip(renders.identities, renders.views, strict=True)]
    ids, _ = prompt_ids(tokenizers, texts, config.text_length)
    seed = options.seed + 2
    matcher = jax.jit(lambda: CaptionMatcher(config.siglip, clip, rngs=nnx.Rngs(seed)))()
    if tower is not None:
        matcher.vision = tower
    # Captions end long before the 77 ids, and causal attention ignores what follows the end.
    longest = 1 + int((ids == ids.max()).argmax(1).max())

    def loss(matcher: CaptionMatcher, batch: tuple[Array, Array], key: Array) -> Array:
        return siglip_loss(matcher, *batch, config.siglip_crop_odds, key)

    matcher, curve = fit("siglip", matcher, loss, (renders.pixels, ids[:, :longest]), options)
    return matcher.vision, {"loss": curve}


def siglip_loss(
    matcher: CaptionMatcher,
    crops: UInt8[Array, "b 5 s s 3"],
    ids: Int[Array, "b n"],
    odds: Sequence[float],
    key: Array,
) -> Array:
    """Return the sigmoid loss of a crop of each reference with each caption."""
    pixels = normalize(_sample_crops(crops, odds, key), *SIGLIP_SCALE, dtype_of(matcher))
    logits = matcher(pixels, ids)
    signs = 2 * jnp.eye(len(logits)) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)


class MaskedPatchModel(nnx.Module):
    """Encoder with a linear map from each token to the pixels of its patch."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.encoder = Dinov2(config, rngs=rngs)
        patch = 3 * config.patch_size**2
        self.to_pixels = Linear(config.hidden_size, patch, axes=(None, None), rngs=rngs)


def train_dinov2(
    config: Dinov2Config, subjects: UInt8[np.ndarray, "n 5 s s 3"], options: FitOptions
) -> tuple[Dinov2, dict[str, Any]]:
    """Return the encoder, and its figures."""
    model = jax.jit(lambda: MaskedPatchModel(config, rngs=nnx.Rngs(options.seed + 3)))()
    model, curve = fit("dinov2", model, partial(dinov2_loss, config), subjects, options)
    return model.encoder, {"loss": curve}


def dinov2_loss(
    config: Dinov2Config, model: MaskedPatchModel, crops: UInt8[Array, "b 5 s s 3"], key: Array
) -> Array:
    """Return the mean absolute error of the completed pixels of a crop of each reference."""
    patch, side = config.patch_size, config.image_size // config.patch_size
    crop, hiding = jax.random.split(key)
    dtype = dtype_of(model)
    pixels = normalize(_sample_crops(crops, EVEN_ODDS, crop), *IMAGENET_SCALE, dtype)
    shape = (len(pixels), side, 1, side, 1, 1)
    patches = pixels.reshape(len(pixels), side, patch, side, patch, 3)
    visible = patches * jax.random.bernoulli(hiding, 1 - HIDDEN, shape)
    tokens = model.encoder(visible.reshape(pixels.shape))[0][:, 1:]  # without CLS
    error = model.to_pixels(tokens) - patches.swapaxes(2, 3).reshape(*tokens.shape[:2], -1)
    return jnp.abs(error).astype(jnp.float32).mean()


def _sample_crops(
    crops: UInt8[Array, "b 5 s s 3"], odds: Sequence[float], key: Array
) -> UInt8[Array, "b s s 3"]:
    """Sample one of the five crops of each reference."""
    numbers = jax.random.choice(key, 5, (len(crops),), p=jnp.array(odds))
    return jax.vmap(lambda pictures, n: pictures[n])(crops, numbers)
