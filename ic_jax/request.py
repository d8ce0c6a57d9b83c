"""Requests to the sampler, built from the arguments of a pipeline's call."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ic_jax import flow, sampler
from ic_jax.config import SchedulerConfig
from ic_jax.models.rope import rope_table
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.preprocessing.images import Picture
from ic_jax.preprocessing.originals import Originals
from ic_jax.preprocessing.tokenizers import check_prompt
from ic_jax.runner import ReferenceLatents, Runner
from ic_jax.subjects import EncodedSubjects, subject_of_request

Prompts = str | Sequence[str]
ReferenceImage = Picture | Sequence[Picture] | ReferenceLatents


def build_request(
    runner: Runner,
    scheduler: SchedulerConfig,
    args: SamplingArguments,
    *,
    texts: sampler.TextEmbeddings,
    negative: sampler.TextEmbeddings | None,
    subjects: EncodedSubjects | None,
    references: ReferenceLatents | None,
    originals: Originals | None,
    seed: Any,
    latents: Any,
) -> tuple[sampler.SamplingRequest, list[int] | None]:
    """Return the sampler's request, one row per picture, and each picture's seed."""
    count = arguments.common_count(
        prompts=len(texts.embeds),
        negatives=None if negative is None else len(negative.embeds),
        subjects=None if subjects is None else len(subjects.lists),
        references=None if references is None else len(references.latents),
        images=None if originals is None else len(originals.pictures),
        masks=None if originals is None or originals.masks is None else len(originals.masks),
    )
    total = count * args.num_images_per_prompt

    def per_picture(prompt: sampler.TextEmbeddings) -> sampler.TextEmbeddings:
        return runner.repeat_rows(prompt, total // len(prompt.embeds))

    def full(value: float) -> Any:  # NumPy: jnp.full would compile a program
        return np.full(total, value, np.float32)

    subject = true_cfg = reference = reference_grid = None
    if references is not None:
        rows, reference_grid = references
        reference = runner.repeat_rows(rows, total // len(rows))
    seeds, noise = _seeds_and_noise(runner, args, total, seed, latents)
    height, width = runner.grid(args.height, args.width)
    ids = flow.position_ids(texts.embeds.shape[1], height, width, reference_grid)
    sigmas: Any = flow.schedule(args.sigmas or args.num_inference_steps, height * width, scheduler)
    inpainting = None
    if originals is not None:
        assert args.strength is not None
        sigmas = sigmas[flow.first_step(len(sigmas) - 1, args.strength) :]
        pixels, masks = originals.resized(args.height, args.width, runner.vae.config.downscale)
        noise, inpainting = runner.noise_originals(pixels, masks, noise, sigmas[0], seeds)
    negative_scale: Any = full(0.0)
    if subjects is not None:
        subject, negative_scale = subject_of_request(
            subjects,
            args,
            runner.transformer.config,
            pictures=total,
            steps=len(sigmas) - 1,
            grid=(height, width),
            reference_tokens=0 if reference is None else reference.shape[1],
        )
    if negative is not None:
        true_cfg = sampler.TrueCfg(per_picture(negative), full(args.true_cfg_scale), negative_scale)
    request = sampler.SamplingRequest(
        latents=noise,
        prompt=per_picture(texts),
        guidance_scale=full(args.guidance_scale),
        sigmas=sigmas,
        rope=rope_table(ids, runner.transformer.config),
        subject=subject,
        true_cfg=true_cfg,
        reference=reference,
        inpainting=inpainting,
    )
    return request, seeds


def _seeds_and_noise(
    runner: Runner, args: SamplingArguments, total: int, seed: Any, latents: Any
) -> tuple[list[int] | None, Array]:
    """Return each picture's seed, and its packed noise; given latents have no seeds."""
    height, width = grid = runner.grid(args.height, args.width)
    if latents is not None:
        shape = (total, height * width, runner.transformer.config.in_channels)
        arguments.check_shape("latents", latents, shape)
        return None, jnp.asarray(latents, jnp.float32)
    each = args.num_images_per_prompt
    seeds = arguments.seeds(seed, total // each, each)
    return seeds, runner.noise(seeds, grid)


def text_embeddings(
    runner: Runner,
    texts: tuple[Any, Any],
    embeds: tuple[Any, Any],
    length: int,
    *,
    prefix: str = "",
    triggers: Sequence[str] = (),
) -> sampler.TextEmbeddings:
    """Check a call's embeddings and cast them to the model's dtype, or encode its texts.

    Args:
        runner: compiled parts of the model.
        texts: prompt and prompt_2.
        embeds: prompt_embeds and pooled_prompt_embeds.
        length: T5 tokens.
        prefix: "" or "negative_", for messages.
        triggers: words to put before every text.
    """
    if all(array is None for array in embeds):
        return encode_texts(runner, *texts, length, prefix=prefix, triggers=triggers)
    name, pooled_name = f"{prefix}prompt_embeds", f"{prefix}pooled_prompt_embeds"
    if any(array is None for array in embeds):
        raise ValueError(f"{name} and {pooled_name} go together; give both")
    if any(text is not None for text in texts):
        raise ValueError(f"{prefix}prompt and {name} exclude each other; give one")
    flux = runner.transformer.config
    arguments.check_shape(name, embeds[0], (None, None, flux.joint_attention_dim))
    arguments.check_shape(pooled_name, embeds[1], (len(embeds[0]), flux.pooled_projection_dim))
    return sampler.TextEmbeddings(*(jnp.asarray(array, runner.dtype) for array in embeds))


def encode_texts(
    runner: Runner,
    prompt: Prompts | None,
    prompt_2: Prompts | None,
    length: int,
    *,
    prefix: str = "",
    triggers: Sequence[str] = (),
) -> sampler.TextEmbeddings:
    """Encode prompts behind trigger words; an absent or empty prompt_2 is the prompt."""

    def lines(name: str, texts: Prompts) -> list[str]:
        checked = map(check_prompt, arguments.as_list(f"{prefix}{name}", texts))
        return [", ".join(filter(None, [*triggers, text])) for text in checked]

    prompt = "" if prompt is None else prompt
    prompt_2 = prompt if prompt_2 is None or prompt_2 == "" else prompt_2
    return runner.encode_prompts(lines("prompt", prompt), lines("prompt_2", prompt_2), length)


def encode_references(runner: Runner, references: ReferenceImage | None) -> ReferenceLatents | None:
    """Return the latents of references, encoding those that are pictures."""
    if references is None:
        return None
    if not isinstance(references, ReferenceLatents):
        return runner.encode_references(arguments.as_list("reference_image", references))
    rows, (height, width) = references
    shape = (None, height * width, runner.transformer.config.in_channels)
    arguments.check_shape("reference_image's latents", rows, shape)
    return references
