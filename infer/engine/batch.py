"""One batch of drawings on a pipeline."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from ic_jax import InstantCharacterPipeline, flow
from ic_jax.models.features import SubjectFeatures
from infer.engine.characters import Character
from infer.engine.drawing import Drawing


class Abandoned(Exception):
    """Nobody wants any picture of the batch any more."""


def draw(
    pipe: InstantCharacterPipeline, drawings: Sequence[Drawing], rows: int
) -> list[Image.Image]:
    """Draw pictures of one key, step by step; those that end meanwhile are drawn along.

    Args:
        pipe: the pipeline, whose active LoRAs are those of the drawings.
        drawings: at most `rows`.
        rows: of the batch that is drawn; the last drawing fills it up.

    Raises:
        Abandoned: all drawings have ended meanwhile.
    """
    padded = [*drawings, *[drawings[-1]] * (rows - len(drawings))]
    requests, settings = [drawing.request for drawing in padded], drawings[0].settings

    def texts(name: str) -> list[str] | None:
        values = [getattr(request, name) for request in requests]
        return None if values[0] is None else values

    def features(character: Character) -> SubjectFeatures:
        return character.features(pipe.encode_subject, requests[0].subject_fit)

    single = [features(x.subject) for x in requests if x.subject is not None]
    several = [
        [placed.prompt(features(placed.character)) for placed in request.subjects]
        for request in requests
        if request.subjects
    ]
    originals = [x.original for x in requests if x.original is not None]
    masks = [x.mask_image for x in originals if x.mask_image is not None]
    result = pipe(
        prompt=texts("prompt"),
        prompt_2=texts("prompt_2"),
        negative_prompt=texts("negative_prompt"),
        negative_prompt_2=texts("negative_prompt_2"),
        seed=[request.seed for request in requests],
        subject_image=single or None,
        subjects=several or None,
        subject_fit=requests[0].subject_fit,
        image=[x.image for x in originals] or None,
        mask_image=masks or None,
        strength=settings.strength,
        height=settings.height,
        width=settings.width,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        true_cfg_scale=settings.true_cfg_scale,
        subject_scale=settings.subject_scale,
        negative_subject_scale=settings.negative_subject_scale,
        subject_start=settings.subject_start,
        subject_end=settings.subject_end,
        subject_ramp=settings.subject_ramp,
        subject_blocks=settings.subject_blocks,
        max_sequence_length=settings.max_sequence_length,
        callback_on_step_end=_after_step(pipe, drawings),
    )
    assert isinstance(result.images, list)
    return result.images[: len(drawings)]


def _after_step(pipe: InstantCharacterPipeline, drawings: Sequence[Drawing]) -> Callable[..., None]:
    """Return the pipeline's callback, which tells every drawing how far it is."""
    settings = drawings[0].settings
    previous: Any = None  # latents

    def after_step(_pipe: Any, index: int, _timestep: float, values: dict[str, Any]) -> None:
        nonlocal previous
        latents, step = jax.block_until_ready(values["latents"]), index + 1
        live = [drawing for drawing in drawings if not drawing.done()]
        if not live:
            raise Abandoned
        pictures: Sequence[Image.Image | None] = [None] * len(drawings)
        if previous is not None and any(drawing.wants_preview(step) for drawing in live):
            sigmas = flow.schedule(settings.num_inference_steps, latents.shape[1], pipe.scheduler)
            levels = sigmas[settings.num_inference_steps - drawings[0].steps + index :][:2]
            estimate = _estimate(np.asarray(previous), np.asarray(latents), *levels)
            pictures = pipe.decode_latents(estimate, settings.height, settings.width)
        for drawing, picture in zip(drawings, pictures, strict=False):
            _tell(drawing, step, picture if drawing.wants_preview(step) else None)
        previous = latents

    return after_step


def _estimate(before: np.ndarray, after: np.ndarray, sigma: float, next_sigma: float) -> np.ndarray:
    """Return the denoised latents that the last step was heading for."""
    velocity = (after - before) / (next_sigma - sigma)
    return after - next_sigma * velocity


def _tell(drawing: Drawing, step: int, picture: Image.Image | None) -> None:
    """Call `on_step`; its error ends this drawing, not its neighbours."""
    drawing.step = step
    if drawing.on_step is None or drawing.done():
        return
    try:
        drawing.on_step(step, drawing.steps, picture)
    except Exception as error:
        drawing.fail(error)
