"""Encoding of a batch by the frozen encoders (or read from the cache), and its noise.

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
from ic_jax.sharding import constrain
from train.data.encoded_store import Embeddings, LatentPosterior
from train.objective import Examples


class Frozen(NamedTuple):
    """Frozen base: an argument of the step like the batch, never one of its results.

    An encoder that is not run is None: its results are cached, or a LoRA is trained, which
    needs no reference.
    """

    transformer: Flux
    vae: Vae | None
    siglip: SiglipVision | None
    dinov2: Dinov2 | None
    t5: T5Encoder | None
    clip: ClipText | None


class Ids(NamedTuple):
    """Tokenized prompts; without the axis b, a single prompt."""

    clip: Int[Array, "*b n"]
    t5: Int[Array, "*b t"]


class Reference(NamedTuple):
    """Reference pictures at low resolution, and as four tiles at high resolution.

    With an axis k, every target has k subjects, with a reference each.
    """

    low: UInt8[Array, "b *k s s 3"]
    high: UInt8[Array, "b *k 4 s s 3"]


class StepBatch(NamedTuple):
    """Global batch of the step, on the devices: raw, or read from the cache."""

    target: UInt8[Array, "b h w 3"] | LatentPosterior
    prompt: Ids | Embeddings
    reference: Reference | None  # only for the adapter
    focus: Float[Array, "b y x"] | None = None  # density of the focus boxes, by latent
    regions: Float[Array, "b k n"] | None = None  # weight of each of k subjects at image tokens


@struct.dataclass
class StepScalars:
    """Numbers of a stage that are arguments of the step: changing them compiles nothing."""

    learning_rate: Float[Array, ""]
    shift: Float[Array, ""]  # of noise levels, e^mu; 1 is none
    guidance: Float[Array, ""]
    text_dropout: Float[Array, ""]
    subject_dropout: Float[Array, ""]
    ema: Float[Array, ""]
    focus: Float[Array, ""]


def row_keys(seed: Int[Array, ""], step: Int[Array, ""], batch: StepBatch) -> Array:
    """Return one random key for each row of a batch."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    rows = jnp.arange(batch.prompt[0].shape[0])
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def encode(
    frozen: Frozen,
    batch: StepBatch,
    keys: Array,
    empty: Ids | Embeddings,
    scalars: StepScalars,
    config: AdapterConfig | None,
    timesteps: str,
    dtype: DTypeLike,
) -> Examples:
    """Run the frozen encoders, and sample the noise, noise level and dropouts of each row.

    Args:
        empty: the empty prompt, of the same type as the batch's prompts.
        config: of the adapter; None computes no features of the reference.
    """
    subkeys = jax.vmap(lambda key: jax.random.split(key, 5))(keys)
    drop_text, drop_subject = (
        jax.vmap(jax.random.bernoulli, (0, None))(subkeys[:, i], p)
        for i, p in enumerate((scalars.text_dropout, scalars.subject_dropout))
    )
    prompt = jax.tree.map(
        lambda e, p: jnp.where(drop_text.reshape(-1, *[1] * e.ndim), e, p),
        empty,
        batch.prompt,
    )
    if isinstance(prompt, Ids):
        assert frozen.t5 is not None
        assert frozen.clip is not None
        prompt = embeddings(frozen.t5, frozen.clip, prompt)
    target = batch.target
    if not isinstance(target, LatentPosterior):
        assert frozen.vae is not None
        target = latent_posterior(frozen.vae, target, dtype)
    mean, std = target
    latents = pack(mean + std * _normal(subkeys[:, 2], mean.shape[1:]))
    features = None
    if config is not None:
        assert frozen.siglip is not None
        assert frozen.dinov2 is not None
        assert batch.reference is not None
        low, high = batch.reference
        pictures = low.reshape(-1, *low.shape[-3:]), high.reshape(-1, *high.shape[-4:])
        features = subject_features(frozen.siglip, frozen.dinov2, config, *pictures, dtype)
    weight = None
    if batch.focus is not None:
        spread = 1 - scalars.focus + scalars.focus * batch.focus
        weight = pack(jnp.broadcast_to(spread[..., None], mean.shape))
    return Examples(
        latents=latents,
        noise=_normal(subkeys[:, 3], latents.shape[1:]),
        sigma=noise_levels(subkeys[:, 4], timesteps, scalars.shift),
        prompt_embeds=prompt.t5,
        pooled=prompt.pooled,
        features=features,
        subject_scale=1.0 - drop_subject.astype(jnp.float32),
        guidance=jnp.full(len(keys), scalars.guidance),
        weight=weight,
        regions=None
        if batch.regions is None
        else constrain(batch.regions, "batch", None, "tokens"),
    )


def embeddings(t5: T5Encoder, clip: ClipText, ids: Ids) -> Embeddings:
    """Return the embeddings of prompts by both text encoders."""
    return Embeddings(t5(ids.t5), clip(ids.clip))


def latent_posterior(
    vae: Vae, pixels: UInt8[Array, "b h w 3"], dtype: DTypeLike
) -> LatentPosterior:
    """Encode pictures to mean and standard deviation of FLUX's latents, float32."""
    x = (pixels.astype(jnp.float32) / 127.5 - 1).astype(dtype)
    mean, logvar = (x.astype(jnp.float32) for x in vae.encode(x))
    return LatentPosterior(vae.to_latents(mean), jnp.exp(logvar / 2) * vae.config.scaling_factor)


def noise_levels(keys: Array, timesteps: str, shift: Float[Array, ""]) -> Float[Array, "b"]:
    """Return noise levels in 0..1, shifted as FLUX's schedule is for the picture's length.

    They are logit-normal (Stable Diffusion 3, arXiv 2403.03206) or uniform before the shift.
    """
    if timesteps == "logit-normal":
        sigma = jax.nn.sigmoid(jax.vmap(jax.random.normal)(keys))
    else:
        # Neither 0 nor 1: at 1 the input says nothing of the picture, at 0 nothing of the noise.
        sigma = jax.vmap(lambda k: jax.random.uniform(k, minval=1e-3, maxval=1 - 1e-3))(keys)
    return shift / (shift + 1 / sigma - 1)


def _normal(keys: Array, shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
