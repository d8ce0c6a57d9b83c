"""Flow-matching sampler: pure functions from noise and conditioning to a picture's latents.

`sample` is one compiled program per shape and number of steps. Prompts, subjects, seeds, guidance
and scales are all arguments, so another prompt compiles nothing. `sample` is `prepare` and then a
scan of `step`; call these two to see or change the latents between steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from ic_jax import flow
from ic_jax.models.adapter import Adapter
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.flux import Flux, Modulation
from ic_jax.models.image_prompt import BlockFactors, ImagePrompt
from ic_jax.models.rope import Rope
from ic_jax.sharding import constrain

RESAMPLER_STEPS = 4  # in one batch of the resampler; its attention is large enough to fill a chip


class TextEmbeddings(NamedTuple):
    """Text embeddings of one prompt per picture."""

    embeds: Float[Array, "b t e"]  # T5's, one vector per token
    pooled: Float[Array, "b p"]  # CLIP's, one vector per prompt


class Subject(NamedTuple):
    """Subjects of b pictures, and where they act.

    Without `pictures` every picture of `features` is a subject of its own. Their number u divides
    b, and the drawn pictures of one subject are neighbours. With `pictures` every drawn picture has
    k subjects, which f pictures show each; u is then the number of such groups.

    Attributes:
        features: of p pictures of subjects.
        scale: strength, usually 0.8 to 1; with `pictures` one for each subject.
        pictures: which of `features` show each subject.
        regions: weight of each subject at each image token, a reference's included: each subject
            has an attention of its own, and these are added. Without regions one attention sees
            the tokens of all subjects.
        step_factors: factor of the scale at each step; 1 by default.
        block_factors: factor of the scale in each block; 1 by default.
    """

    features: SubjectFeatures
    scale: Float[Array, "b *k"]
    pictures: Int[Array, "u k f"] | None = None
    regions: Float[Array, "b k n"] | None = None
    step_factors: Float[Array, "steps"] | None = None
    block_factors: BlockFactors | None = None


class TrueCfg(NamedTuple):
    """True classifier-free guidance: v_negative + scale * (v - v_negative)."""

    negative: TextEmbeddings
    scale: Float[Array, "b"]
    subject_scale: Float[Array, "b *k"]  # in v_negative; 0 guides towards the subject, too


class Inpainting(NamedTuple):
    """Pictures to keep where a mask is 0, as packed latents; where it is 1 they are drawn anew."""

    original: Float[Array, "b n c"]
    noise: Float[Array, "b n c"]  # that `SamplingRequest.latents` has of the first level's
    mask: Float[Array, "b n c"]


class SamplingRequest(NamedTuple):
    """All inputs of a sampling run, which computes in the dtype of `prompt.embeds`."""

    latents: Float[Array, "b n c"]  # packed noise, or a picture at the first level's; float32
    prompt: TextEmbeddings
    guidance_scale: Float[Array, "b"]  # FLUX.1-dev's distilled guidance
    sigmas: Float[Array, "steps_1"]  # steps + 1 levels, see flow.schedule
    rope: Rope  # of flow.position_ids, see rope_table
    subject: Subject | None = None
    true_cfg: TrueCfg | None = None
    reference: Float[Array, "b m c"] | None = None  # packed latents; `rope` has their ids, last
    inpainting: Inpainting | None = None


class Steps(NamedTuple):
    """Inputs of every step that do not depend on the latents; axis s is the step."""

    sigma: Float[Array, "s"]
    next_sigma: Float[Array, "s"]
    modulation: Modulation
    subject_tokens: Float[Array, "s p m c"] | None
    subject_factor: Float[Array, "s"] | None = None


class Conditioning(NamedTuple):
    """Inputs of the loop over steps, apart from the latents.

    With true classifier-free guidance every picture has two neighbouring rows: negative, positive.
    """

    text: Float[Array, "rows t d"]
    steps: Steps
    rope: Rope
    subject_scale: Float[Array, "rows *k"]
    true_cfg_scale: Float[Array, "b"] | None
    reference: Float[Array, "rows m c"] | None
    inpainting: Inpainting | None = None
    subject_pictures: Int[Array, "u k f"] | None = None
    subject_regions: Float[Array, "rows k n"] | None = None
    block_factors: BlockFactors | None = None


def prepare(flux: Flux, adapter: Adapter | None, request: SamplingRequest) -> Conditioning:
    """Compute what does not depend on the noise, once for all steps."""
    prompt, guidance, subject = request.prompt, request.guidance_scale, request.subject
    reference, regions = request.reference, None if subject is None else subject.regions
    scale = jnp.zeros_like(guidance) if subject is None else subject.scale
    if (true_cfg := request.true_cfg) is not None:
        prompt = jax.tree.map(_interleave, true_cfg.negative, prompt)
        guidance = jnp.repeat(guidance, 2)
        scale = _interleave(scale if subject is None else true_cfg.subject_scale, scale)
        reference, regions = (
            None if x is None else jnp.repeat(x, 2, axis=0) for x in (reference, regions)
        )
    times = request.sigmas[:-1]
    return Conditioning(
        text=flux.embed_text(prompt.embeds),
        steps=Steps(
            sigma=times,
            next_sigma=request.sigmas[1:],
            modulation=_modulation(flux, times, guidance, prompt.pooled),
            subject_tokens=None if subject is None else _subject_tokens(adapter, subject, times),
            subject_factor=None if subject is None else subject.step_factors,
        ),
        rope=request.rope,
        subject_scale=scale,
        true_cfg_scale=None if true_cfg is None else true_cfg.scale,
        reference=None if reference is None else reference.astype(prompt.embeds.dtype),
        inpainting=request.inpainting,
        subject_pictures=None if subject is None else subject.pictures,
        subject_regions=None if regions is None else constrain(regions, "batch", None, "tokens"),
        block_factors=None if subject is None else subject.block_factors,
    )


def _modulation(
    flux: Flux, times: Float[Array, "s"], guidance: Float[Array, "b"], pooled: Float[Array, "b p"]
) -> Modulation:
    """Compute the modulation of all steps at once; 27% of FLUX's weights serve nothing else."""
    s, b = len(times), len(guidance)
    rows = flux.modulation(
        jnp.repeat(times, b), jnp.tile(guidance, s), jnp.tile(pooled, (s, 1))
    )  # s * b rows, the b pictures of a step beside each other

    def by_step(x: Float[Array, "blocks sb k d"]) -> Float[Array, "s blocks b k d"]:
        steps = x.reshape(x.shape[0], s, b, *x.shape[2:]).swapaxes(0, 1)
        return constrain(steps, None, None, "batch", None, None)

    return Modulation(
        img=by_step(rows.img),
        txt=by_step(rows.txt),
        single=by_step(rows.single),
        out=rows.out.reshape(s, b, *rows.out.shape[1:]),
    )


def _subject_tokens(
    adapter: Adapter | None, subject: Subject, times: Float[Array, "s"]
) -> Float[Array, "s p m c"]:
    if adapter is None:
        raise ValueError("a subject needs the adapter, and this model has none")
    projector = adapter.image_proj
    gathered = projector.gather(subject.features)

    def at(t: Float[Array, ""]) -> Float[Array, "p m c"]:
        return projector.resample(gathered, jnp.full(gathered.shape[0], 1000.0 * t))

    # All steps at once would need memory without bound as steps and subjects grow.
    return jax.lax.map(at, times, batch_size=RESAMPLER_STEPS)


def _interleave(negative: Array, positive: Array) -> Array:
    return jnp.stack([negative, positive], axis=1).reshape(-1, *positive.shape[1:])


def step(
    flux: Flux,
    adapter: Adapter | None,
    conditioning: Conditioning,
    latents: Float[Array, "b n c"],
    index: Int[Array, ""],
) -> Float[Array, "b n c"]:
    """Take Euler step `index` in float32: latents + (next_sigma - sigma) * velocity.

    A reference's tokens follow those of the picture through all blocks, and no velocity is read
    from them. What inpainting keeps is put back after the step, with the noise of its level.
    """
    c, at = conditioning, jax.tree.map(lambda x: x[index], conditioning.steps)
    prompt = None if adapter is None else _image_prompt(adapter, c, at)
    x = latents.astype(c.text.dtype)
    x = x if c.true_cfg_scale is None else jnp.repeat(x, 2, axis=0)
    x = x if c.reference is None else jnp.concatenate([x, c.reference], axis=1)
    velocity = flux.denoise(x, c.text, at.modulation, c.rope, prompt)
    velocity = velocity[:, : latents.shape[1]].astype(jnp.float32)
    if c.true_cfg_scale is not None:
        pairs = velocity.reshape(-1, 2, *velocity.shape[1:])
        negative, positive = pairs[:, 0], pairs[:, 1]
        velocity = negative + c.true_cfg_scale[:, None, None] * (positive - negative)
    latents = latents + (at.next_sigma - at.sigma) * velocity
    if c.inpainting is None:
        return latents
    original, noise, mask = c.inpainting
    kept = flow.add_noise(original, noise, at.next_sigma)
    return (1 - mask) * kept + mask * latents


def _image_prompt(adapter: Adapter, c: Conditioning, at: Steps) -> ImagePrompt | None:
    """Return the image prompt of the step `at`; None if there is no subject."""
    tokens, scale = at.subject_tokens, c.subject_scale
    if tokens is None:
        return None
    if at.subject_factor is not None:
        scale = at.subject_factor * scale
    if c.subject_pictures is not None:
        u, k, f = c.subject_pictures.shape
        tokens = tokens[c.subject_pictures].reshape(u, k, f * tokens.shape[1], -1)
    regions = c.subject_regions
    return ImagePrompt(adapter.ip_adapter, tokens, scale, regions, c.block_factors)


def sample(flux: Flux, adapter: Adapter | None, request: SamplingRequest) -> Float[Array, "b n c"]:
    """Denoise `request.latents`; return packed latents, float32. Pure, to be called in jax.jit.

    Examples:
        >>> import jax
        >>> import numpy as np
        >>> import ic_jax
        >>> from ic_jax import flow
        >>> pipe = ic_jax.InstantCharacterPipeline.from_pretrained()  # the bundled small model
        >>> flux, adapter, vae = pipe.transformer, pipe.adapter, pipe.vae
        >>> embeds, pooled = pipe.encode_prompt("A person riding a bicycle.")
        >>> subject = pipe.encode_subject("infer/demo.png")
        >>> side = pipe.sampling.height // 16  # tokens of 16 x 16 pixels
        >>> seeds = jax.numpy.uint32([7])
        >>> latents = ic_jax.noise(seeds, 2 * side, 2 * side, vae.config.latent_channels)
        >>> request = ic_jax.SamplingRequest(
        ...     latents=flow.pack(latents),
        ...     prompt=ic_jax.TextEmbeddings(embeds, pooled),
        ...     guidance_scale=np.float32([3.5]),
        ...     sigmas=flow.schedule(12, side * side, pipe.scheduler),
        ...     rope=ic_jax.rope_table(flow.position_ids(36, side, side), flux.config),
        ...     subject=ic_jax.Subject(subject, np.float32([1.0])),
        ... )
        >>> denoised = jax.jit(ic_jax.sample)(flux, adapter, request)
        >>> denoised = flow.unpack(denoised, 2 * side, 2 * side).astype(pipe.dtype)
        >>> pixels = jax.jit(lambda vae, x: vae.decode(vae.from_latents(x)))(vae, denoised)
        >>> pixels.shape  # in -1..1
        (1, 128, 128, 3)
    """
    conditioning = prepare(flux, adapter, request)

    def body(latents: Array, index: Array) -> tuple[Array, None]:
        return step(flux, adapter, conditioning, latents, index), None

    steps = jnp.arange(request.sigmas.shape[0] - 1)
    return jax.lax.scan(body, request.latents, steps)[0]


def noise(
    seeds: UInt32[Array, "b"], height: int, width: int, channels: int
) -> Float[Array, "b h w c"]:
    """Sample unit normal latents, float32; a picture's noise depends on its own seed alone.

    Args:
        seeds: one for each picture.
        height: in latent pixels, `flow.PATCH` to a token; likewise `width`.
        width: see `height`.
        channels: of the VAE's latents.
    """

    def of_seed(seed: Array) -> Array:
        return jax.random.normal(jax.random.key(seed), (height, width, channels), jnp.float32)

    return jax.vmap(of_seed)(seeds)
