"""The two image encoders, by two different objectives.

SigLIP learns which caption goes with which picture (sigmoid loss, arXiv 2303.15343). The one in
DINOv2's place learns to complete pictures of which it sees a half (masked image modelling, arXiv
2111.09886): dense, where the other is semantic. Both see figures on white, whole and in tiles,
as an adapter shows them to the encoders.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from examples.open_peeps.base_model.fit import Fit, fit
from examples.open_peeps.base_model.pictures import Drawn
from examples.open_peeps.base_model.settings import EVENLY, Settings
from examples.open_peeps.base_model.word_tokenizer import Files, prompt_ids
from examples.open_peeps.world.worlds import WORLDS
from ic_jax.config import ClipConfig, Dinov2Config, SiglipConfig
from ic_jax.models.clip import ClipText
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.features import IMAGENET_SCALE, SIGLIP_SCALE, normalize
from ic_jax.models.layers import Linear
from ic_jax.models.siglip import SiglipVision

HIDDEN = 0.5  # share of the patches


class Pairing(nnx.Module):
    """The image tower with a text tower, which ends with the training."""

    def __init__(self, config: SiglipConfig, clip: ClipConfig, *, rngs: nnx.Rngs):
        self.vision = SiglipVision(config, rngs=rngs)
        self.text = ClipText(clip, rngs=rngs)
        self.to_text = Linear(
            config.hidden_size, clip.hidden_size, axes=(None, None), bias=False, rngs=rngs
        )
        # As the paper starts them: nearly all pairs do not belong together.
        self.scale = nnx.Param(jnp.array(math.log(10.0)))
        self.bias = nnx.Param(jnp.array(-10.0))

    def __call__(
        self, pixels: Float[Array, "b h w 3"], ids: Int[Array, "b n"]
    ) -> Float[Array, "b b"]:
        """Logit of each picture with each caption."""
        a, b = self.to_text(self.vision(pixels)[0].mean(1)), self.text(ids)
        a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        return jnp.exp(self.scale[...]) * a @ b.T + self.bias[...]


def train_siglip(
    settings: Settings,
    drawn: Drawn,
    clip: ClipConfig,
    tokenizers: dict[str, Files],
    options: Fit,
    tower: SiglipVision | None = None,
) -> tuple[SiglipVision, dict[str, Any]]:
    """The image tower, and its figures.

    Args:
        drawn: with five pictures of each subject.
        clip: of the text tower.
        tower: to train further; by default one of random weights.
    """
    rng, who = np.random.default_rng((settings.seed, 4)), WORLDS[settings.world].who
    texts = [who(v, i, rng) for i, v in zip(drawn.identities, drawn.views, strict=True)]
    ids, _ = prompt_ids(tokenizers, texts, settings.text_length)
    seed = options.seed + 2
    pairing = jax.jit(lambda: Pairing(settings.siglip, clip, rngs=nnx.Rngs(seed)))()
    if tower is not None:
        pairing.vision = tower
    # Captions end long before the 77 ids; causal attention sees nothing of what follows.
    longest = 1 + int((ids == ids.max()).argmax(1).max())

    def loss(pairing: Pairing, batch: tuple[Array, Array], key: Array) -> Array:
        pixels = normalize(_some(batch[0], settings.siglip_shown, key), *SIGLIP_SCALE, jnp.float32)
        logits = pairing(pixels, batch[1])
        signs = 2 * jnp.eye(len(logits)) - 1
        return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)

    pairing, curve = fit("siglip", pairing, loss, (drawn.pixels, ids[:, :longest]), options)
    return pairing.vision, {"loss": curve}


class Completion(nnx.Module):
    """The encoder with a linear map from each token to its patch's pixels."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.encoder = Dinov2(config, rngs=rngs)
        patch = 3 * config.patch_size**2
        self.to_pixels = Linear(config.hidden_size, patch, axes=(None, None), rngs=rngs)


def train_dinov2(
    config: Dinov2Config, subjects: UInt8[np.ndarray, "n 5 s s 3"], options: Fit
) -> tuple[Dinov2, dict[str, Any]]:
    """The encoder, and its figures."""
    completion = jax.jit(lambda: Completion(config, rngs=nnx.Rngs(options.seed + 3)))()
    patch, side = config.patch_size, config.image_size // config.patch_size

    def loss(completion: Completion, batch: Array, key: Array) -> Array:
        chosen, hiding = jax.random.split(key)
        pixels = normalize(_some(batch, EVENLY, chosen), *IMAGENET_SCALE, jnp.float32)
        shape = (len(pixels), side, 1, side, 1, 1)
        patches = pixels.reshape(len(pixels), side, patch, side, patch, 3)
        seen = patches * jax.random.bernoulli(hiding, 1 - HIDDEN, shape)
        tokens = completion.encoder(seen.reshape(pixels.shape))[0][:, 1:]  # without CLS
        error = completion.to_pixels(tokens) - patches.swapaxes(2, 3).reshape(*tokens.shape[:2], -1)
        return jnp.abs(error).mean()

    completion, curve = fit("dinov2", completion, loss, subjects, options)
    return completion.encoder, {"loss": curve}


def _some(
    subjects: UInt8[Array, "b 5 s s 3"], odds: Sequence[float], key: Array
) -> UInt8[Array, "b s s 3"]:
    """One of the five pictures of each subject: the whole, and its four tiles."""
    chosen = jax.random.choice(key, 5, (len(subjects),), p=jnp.array(odds))
    return jax.vmap(lambda pictures, n: pictures[n])(subjects, chosen)
