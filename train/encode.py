"""What the frozen encoders make of a batch, or a cache has of it, with the noise drawn to it.

Everything random follows from a key for each row, so it does not depend on how rows lie on devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from ic_jax.config import AdapterConfig
from ic_jax.flow import pack
from ic_jax.models.clip import ClipText
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.features import subject_features
from ic_jax.models.flux import Flux
from ic_jax.models.siglip import SiglipVision
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.vae import Vae
from train.data.encoded_store import Embeddings, Moments
from train.objective import Examples


class Frozen(NamedTuple):
    """The base: arguments of the step like the batch, never its results.

    Encoders are absent where they are not run: a cache has their results, or a LoRA is trained,
    which knows of no reference.
    """

    transformer: Flux
    vae: Vae | None
    siglip: SiglipVision | None
    dinov2: Dinov2 | None
    t5: T5Encoder | None
    clip: ClipText | None


class Ids(NamedTuple):
    """Tokenized prompts; without b, one of them."""

    clip: Int[Array, "*b n"]
    t5: Int[Array, "*b t"]


class Reference(NamedTuple):
    """The reference pictures whole, and in four tiles."""

    low: UInt8[Array, "b s s 3"]
    high: UInt8[Array, "b 4 s s 3"]


class Batch(NamedTuple):
    """One batch as the loader gives it, or as a cache has it."""

    target: UInt8[Array, "b h w 3"] | Moments
    prompt: Ids | Embeddings
    reference: Reference | None  # only for the adapter
    focus: Float[Array, "b y x"] | None = None  # density of what counts most, by latents


@struct.dataclass
class Knobs:
    """A stage's numbers that the step takes as arguments: changing them compiles nothing."""

    learning_rate: Float[Array, ""]
    shift: Float[Array, ""]  # of noise levels, e^mu; 1 is none
    guidance: Float[Array, ""]
    text_dropout: Float[Array, ""]
    subject_dropout: Float[Array, ""]
    ema: Float[Array, ""]
    focus: Float[Array, ""]


def row_keys(seed: Int[Array, ""], step: Int[Array, ""], batch: Batch) -> Array:
    """One random key for each row of a batch."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    rows = jnp.arange(batch.prompt[0].shape[0])
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def encode(
    frozen: Frozen,
    batch: Batch,
    keys: Array,
    empty: Ids | Embeddings,
    knobs: Knobs,
    config: AdapterConfig | None,
    timesteps: str,
    dtype: DTypeLike,
) -> Examples:
    """Run the frozen encoders, and draw each row's noise, noise level and dropouts.

    Args:
        empty: the empty prompt, of the same kind as the batch's.
        config: the adapter's; without one there are no features of the reference.
    """
    draws = jax.vmap(lambda key: jax.random.split(key, 5))(keys)
    drop_text, drop_subject = (
        jax.vmap(jax.random.bernoulli, (0, None))(draws[:, i], p)
        for i, p in enumerate((knobs.text_dropout, knobs.subject_dropout))
    )
    prompt = jax.tree.map(
        lambda none, own: jnp.where(drop_text.reshape(-1, *[1] * none.ndim), none, own),
        empty,
        batch.prompt,
    )
    if isinstance(prompt, Ids):
        assert frozen.t5 is not None
        assert frozen.clip is not None
        prompt = embeddings(frozen.t5, frozen.clip, prompt)
    target = batch.target
    if not isinstance(target, Moments):
        assert frozen.vae is not None
        target = moments(frozen.vae, target, dtype)
    mean, deviation = target
    latents = pack(mean + deviation * _normal(draws[:, 2], mean.shape[1:]))
    features = None
    if config is not None:
        assert frozen.siglip is not None
        assert frozen.dinov2 is not None
        assert batch.reference is not None
        features = subject_features(frozen.siglip, frozen.dinov2, config, *batch.reference, dtype)
    weight = None
    if batch.focus is not None:
        spread = 1 - knobs.focus + knobs.focus * batch.focus
        weight = pack(jnp.broadcast_to(spread[..., None], mean.shape))
    return Examples(
        latents=latents,
        noise=_normal(draws[:, 3], latents.shape[1:]),
        sigma=noise_levels(draws[:, 4], timesteps, knobs.shift),
        prompt_embeds=prompt.t5,
        pooled=prompt.pooled,
        features=features,
        subject_scale=1.0 - drop_subject.astype(jnp.float32),
        guidance=jnp.full(len(keys), knobs.guidance),
        weight=weight,
    )


def embeddings(t5: T5Encoder, clip: ClipText, ids: Ids) -> Embeddings:
    """What the two text encoders make of prompts."""
    return Embeddings(t5(ids.t5), clip(ids.clip))


def moments(vae: Vae, pixels: UInt8[Array, "b h w 3"], dtype: DTypeLike) -> Moments:
    """Mean and standard deviation of FLUX's latents of pictures, float32 [b, h/8, w/8, c]."""
    x = (pixels.astype(jnp.float32) / 127.5 - 1).astype(dtype)
    mean, logvar = (x.astype(jnp.float32) for x in vae.encode(x))
    return Moments(vae.to_latents(mean), jnp.exp(logvar / 2) * vae.config.scaling_factor)


def noise_levels(keys: Array, timesteps: str, shift: Float[Array, ""]) -> Float[Array, "b"]:
    """Noise levels in 0..1, logit-normal (Stable Diffusion 3, arXiv 2403.03206) or uniform,
    then shifted as FLUX's schedule is for the picture's length."""
    if timesteps == "logit-normal":
        sigma = jax.nn.sigmoid(jax.vmap(jax.random.normal)(keys))
    else:
        # Not 0 and not 1: at either end the velocity cannot be told from the input.
        sigma = jax.vmap(lambda k: jax.random.uniform(k, minval=1e-3, maxval=1 - 1e-3))(keys)
    return shift / (shift + 1 / sigma - 1)


def _normal(keys: Array, shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
