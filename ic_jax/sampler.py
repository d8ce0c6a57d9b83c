"""The sampler: from noise and conditioning to a picture's latents, as pure functions.

`sample` is one compiled program per (shape, steps). Prompts, subjects, seeds, guidance and
scales are all arguments, so another prompt compiles nothing. It is `prepare`, then a scan of
`step`; whoever wants to look in between calls those two.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from ic_jax.models.adapter import Adapter
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.flux import Flux, Modulation
from ic_jax.models.image_prompt import ImagePrompt
from ic_jax.models.rope import Rope
from ic_jax.sharding import constrain

STEPS_AT_ONCE = 4  # that the resampler runs for; its attention is large enough to fill a chip


class TextEmbeddings(NamedTuple):
    """Text embeddings of one prompt per picture."""

    embeds: Float[Array, "b t e"]  # T5's
    pooled: Float[Array, "b p"]  # CLIP's


class Subject(NamedTuple):
    """Whom to draw: u subjects for b pictures; u divides b, pictures of one are neighbours."""

    features: SubjectFeatures
    scale: Float[Array, "b"]


class TrueCfg(NamedTuple):
    """True classifier-free guidance: v_negative + scale * (v - v_negative)."""

    negative: TextEmbeddings
    scale: Float[Array, "b"]
    subject_scale: Float[Array, "b"]  # of the negative; 0: guidance is towards the subject, too


class SamplingRequest(NamedTuple):
    """All that a sampling run depends on. Computes in the dtype of `prompt.embeds`."""

    latents: Float[Array, "b n c"]  # packed noise, float32
    prompt: TextEmbeddings
    guidance_scale: Float[Array, "b"]  # FLUX.1-dev's distilled guidance
    sigmas: Float[Array, "steps_1"]  # steps + 1 levels, see flow.schedule
    rope: Rope
    subject: Subject | None = None
    true_cfg: TrueCfg | None = None


class Steps(NamedTuple):
    """What the steps need that does not depend on the latents: a leading axis s over steps."""

    sigma: Float[Array, "s"]
    next_sigma: Float[Array, "s"]
    modulation: Modulation
    subject_tokens: Float[Array, "s u m c"] | None


class Conditioning(NamedTuple):
    """What the loop needs beside the latents.

    Under true guidance every picture has two neighbouring rows: negative, positive.
    """

    text: Float[Array, "rows t d"]
    steps: Steps
    rope: Rope
    subject_scale: Float[Array, "rows"]
    true_cfg_scale: Float[Array, "b"] | None


def prepare(flux: Flux, adapter: Adapter | None, request: SamplingRequest) -> Conditioning:
    """Compute once what does not depend on the noise, for all steps."""
    prompt, guidance, subject = request.prompt, request.guidance_scale, request.subject
    scale = jnp.zeros_like(guidance) if subject is None else subject.scale
    if (true := request.true_cfg) is not None:
        prompt = jax.tree.map(_interleave, true.negative, prompt)
        guidance = jnp.repeat(guidance, 2)
        scale = _interleave(scale if subject is None else true.subject_scale, scale)
    times = request.sigmas[:-1]
    return Conditioning(
        text=flux.embed_text(prompt.embeds),
        steps=Steps(
            sigma=times,
            next_sigma=request.sigmas[1:],
            modulation=_modulation(flux, times, guidance, prompt.pooled),
            subject_tokens=None if subject is None else _subject_tokens(adapter, subject, times),
        ),
        rope=request.rope,
        subject_scale=scale,
        true_cfg_scale=None if true is None else true.scale,
    )


def _modulation(
    flux: Flux, times: Float[Array, "s"], guidance: Float[Array, "b"], pooled: Float[Array, "b p"]
) -> Modulation:
    """The vectors of all steps at once: 27% of FLUX's weights are read for nothing else."""
    s, b = len(times), len(guidance)
    every = flux.modulation(
        jnp.repeat(times, b), jnp.tile(guidance, s), jnp.tile(pooled, (s, 1))
    )  # rows: step by step, all pictures of one after the other

    def by_step(x: Float[Array, "blocks sb k d"]) -> Float[Array, "s blocks b k d"]:
        steps = x.reshape(x.shape[0], s, b, *x.shape[2:]).swapaxes(0, 1)
        return constrain(steps, None, None, "batch", None, None)

    return Modulation(
        img=by_step(every.img),
        txt=by_step(every.txt),
        single=by_step(every.single),
        out=every.out.reshape(s, b, *every.out.shape[1:]),
    )


def _subject_tokens(
    adapter: Adapter | None, subject: Subject, times: Float[Array, "s"]
) -> Float[Array, "s u m c"]:
    if adapter is None:
        raise ValueError("a subject needs the adapter, and this model has none")
    projector = adapter.image_proj
    gathered = projector.gather(subject.features)

    def at(t: Float[Array, ""]) -> Float[Array, "u m c"]:
        return projector.resample(gathered, jnp.full(gathered.shape[0], 1000.0 * t))

    # All steps at once would need memory without bound as steps and subjects grow.
    return jax.lax.map(at, times, batch_size=STEPS_AT_ONCE)


def _interleave(negative: Array, positive: Array) -> Array:
    return jnp.stack([negative, positive], axis=1).reshape(-1, *positive.shape[1:])


def step(
    flux: Flux,
    adapter: Adapter | None,
    conditioning: Conditioning,
    latents: Float[Array, "b n c"],
    index: Int[Array, ""],
) -> Float[Array, "b n c"]:
    """Euler step number `index`, in float32: latents + (next_sigma - sigma) * velocity."""
    c, at = conditioning, jax.tree.map(lambda x: x[index], conditioning.steps)
    prompt = None
    if adapter is not None and at.subject_tokens is not None:
        prompt = ImagePrompt(adapter.ip_adapter, at.subject_tokens, c.subject_scale)
    x = latents.astype(c.text.dtype)
    x = x if c.true_cfg_scale is None else jnp.repeat(x, 2, axis=0)
    velocity = flux.denoise(x, c.text, at.modulation, c.rope, prompt).astype(jnp.float32)
    if c.true_cfg_scale is not None:
        pairs = velocity.reshape(-1, 2, *velocity.shape[1:])
        negative, positive = pairs[:, 0], pairs[:, 1]
        velocity = negative + c.true_cfg_scale[:, None, None] * (positive - negative)
    return latents + (at.next_sigma - at.sigma) * velocity


def sample(flux: Flux, adapter: Adapter | None, request: SamplingRequest) -> Float[Array, "b n c"]:
    """Denoise `request.latents`; returns packed latents, float32. Pure: jit it."""
    conditioning = prepare(flux, adapter, request)

    def body(latents: Array, index: Array) -> tuple[Array, None]:
        return step(flux, adapter, conditioning, latents, index), None

    steps = jnp.arange(request.sigmas.shape[0] - 1)
    return jax.lax.scan(body, request.latents, steps)[0]


def noise(
    seeds: UInt32[Array, "b"], height: int, width: int, channels: int
) -> Float[Array, "b h w c"]:
    """Unit normal latents, float32; a picture's noise follows from its own seed alone."""

    def one(seed: Array) -> Array:
        return jax.random.normal(jax.random.key(seed), (height, width, channels), jnp.float32)

    return jax.vmap(one)(seeds)
