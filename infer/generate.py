"""Work of `python -m infer draw`: load a model, draw the pictures that are missing, save them."""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from PIL import Image

from ic_jax import InstantCharacterPipeline, SubjectPrompt, multihost
from ic_jax.cli import say
from ic_jax.pipeline import StepCallback
from ic_jax.runner import ReferenceLatents
from infer import grid, output
from infer.output import Job
from infer.request import GenerateRequest, read_request
from infer.timing import Stopwatch

NEGATIVE = None  # key of the negative prompt among the prompts
Embeddings = dict[str | None, tuple[Array, Array]]  # of T5 and CLIP, by prompt


def run(args: argparse.Namespace) -> None:
    """Draw the pictures that the parsed options ask for and that do not exist yet."""
    request = read_request(args)
    jobs = _missing_jobs(request)
    told = [request.metadata(job) for job in request.jobs]
    draws_grid = args.grid and grid.prepare(args.grid, told, overwrite=args.overwrite)
    files = generate(request, jobs) if jobs else {}
    if draws_grid:
        grid.write(args.grid, [files.get(job, job.file) for job in request.jobs])


def generate(request: GenerateRequest, jobs: list[Job]) -> dict[Job, Path]:
    """Draw and save the pictures of `jobs`, printing what was done and how long it took.

    Returns:
        The files that this process has written.
    """
    mesh = request.mesh
    # One picture for each shard of the batch.
    size = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]

    def draw_first(pipe: InstantCharacterPipeline) -> None:
        _load_loras(pipe, request)
        subjects = _encode_subjects(pipe, request)
        callback = _ignore_step if _shows_bar(request) else None
        reference = _encode_reference(pipe, request)
        _draw(pipe, request, _padded(jobs[:size], size), subjects, reference, None, callback)

    watch = Stopwatch()
    pipe = InstantCharacterPipeline.from_pretrained(
        request.model,
        request.dtype,
        verify=request.verify,
        mesh=mesh,
        offload_encoders=request.offload_encoders,
        drawing=request.drawing(size),
        ahead=draw_first,
    )
    _load_loras(pipe, request)
    say(f"loaded {request.model.path} and its programs: {watch.lap()}")
    if subjects := _encode_subjects(pipe, request):
        jax.block_until_ready([subject.image for subject in subjects])
        say(f"encoded {', '.join(x.text for x in request.subjects)}: {watch.lap()}")
    if reference := jax.block_until_ready(_encode_reference(pipe, request)):
        say(f"encoded {request.reference}: {watch.lap()}")
    encoded = _encode_prompts(pipe, request, jobs) if request.offload_encoders else None
    files: dict[Job, Path] = {}
    for first in range(0, len(jobs), size):
        batch = jobs[first : first + size]
        shows_bar = _shows_bar(request)
        desc = batch[0].prompt[:40] or "drawing"
        pipe.set_progress_bar_config(disable=not shows_bar, desc=desc, leave=False)
        inputs = (subjects, reference, encoded, _ignore_step if shows_bar else None)
        images = _draw(pipe, request, _padded(batch, size), *inputs)
        if _spans_processes(request) and not multihost.is_first():
            continue
        for job, image in zip(batch, images[: len(batch)], strict=True):
            told = request.metadata(job)
            files[job] = output.save(image, job.file, told, keep=request.keep)
            say(f"drew {files[job]}: seed {job.seed}, {watch.lap()}")
    return files


def _load_loras(pipe: InstantCharacterPipeline, request: GenerateRequest) -> None:
    for option in request.loras:
        pipe.load_lora_weights(option.lora)
    if request.fuse_lora:
        pipe.fuse_lora()


def _encode_subjects(
    pipe: InstantCharacterPipeline, request: GenerateRequest
) -> list[SubjectPrompt]:
    fit = request.sampling["subject_fit"]
    return [
        SubjectPrompt(
            [pipe.encode_subject(request.figures[x], fit) for x in option.pictures], *option.placing
        )
        for option in request.subjects
    ]


def _encode_reference(
    pipe: InstantCharacterPipeline, request: GenerateRequest
) -> ReferenceLatents | None:
    return None if request.reference is None else pipe.encode_reference(request.reference)


def _padded(batch: list[Job], size: int) -> list[Job]:
    """Repeat the last job, so that nothing is compiled for a smaller batch."""
    return [*batch, *batch[-1:] * (size - len(batch))]


def _missing_jobs(request: GenerateRequest) -> list[Job]:
    """Return the pictures that this process draws: all on a mesh of all processes, or its share.

    A process's share does not depend on which pictures exist, since the processes see that at
    different times.
    """
    together = _spans_processes(request)
    count = multihost.process_count()
    jobs = list(request.jobs if together else request.jobs[multihost.process_index() :: count])

    def missing() -> list[int]:
        if not jobs:
            return []
        output.prepare(jobs, request.metadata)
        if request.overwrite:
            return list(range(len(jobs)))
        indices = output.missing(jobs, request.metadata)
        if len(indices) < len(jobs):
            say(f"{len(jobs) - len(indices)} of {len(jobs)} pictures already exist")
        return indices

    indices = multihost.broadcast_json("pictures", missing) if together else missing()
    return [jobs[i] for i in indices]


def _spans_processes(request: GenerateRequest) -> bool:
    return request.mesh is not None and request.mesh.is_multi_process


def _encode_prompts(
    pipe: InstantCharacterPipeline, request: GenerateRequest, jobs: list[Job]
) -> Embeddings:
    """Encode every prompt at once, so that T5 is loaded once only."""
    length = request.sampling["max_sequence_length"]
    embeddings: Embeddings = {}
    for prompt in dict.fromkeys(job.prompt for job in jobs):
        embeddings[prompt] = pipe.encode_prompt(prompt, request.prompt_2, length)
    if request.sampling["true_cfg_scale"] != 1.0:
        embeddings[NEGATIVE] = pipe.encode_prompt(
            request.negative_prompt or "", request.negative_prompt_2, length, triggers=False
        )
    return embeddings


def _prompt_arguments(
    request: GenerateRequest, jobs: list[Job], encoded: Embeddings | None
) -> dict[str, Any]:
    """Return the pipeline's arguments that say the prompts, as text or as embeddings."""
    if encoded is None:
        return {
            "prompt": [job.prompt for job in jobs],
            "prompt_2": request.prompt_2,
            "negative_prompt": request.negative_prompt,
            "negative_prompt_2": request.negative_prompt_2,
        }
    pairs = zip(*(encoded[job.prompt] for job in jobs), strict=True)
    embeds, pooled = (x[0] if len(x) == 1 else jnp.concatenate(x) for x in pairs)
    arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    if NEGATIVE in encoded:
        embeds, pooled = encoded[NEGATIVE]
        arguments |= {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}
    return arguments


def _draw(
    pipe: InstantCharacterPipeline,
    request: GenerateRequest,
    jobs: list[Job],
    subjects: list[SubjectPrompt],
    reference: ReferenceLatents | None,
    encoded: Embeddings | None,
    callback: StepCallback | None,
) -> list[Image.Image]:
    result = pipe(
        subjects=subjects or None,
        reference_image=reference,
        image=request.image,
        mask_image=request.mask,
        seed=[job.seed for job in jobs],
        callback_on_step_end=callback,
        **_prompt_arguments(request, jobs, encoded),
        **request.sampling,
    )
    assert isinstance(result.images, list)  # output_type is "pil"
    return result.images


def _shows_bar(request: GenerateRequest) -> bool:
    return request.progress and not multihost.is_multiprocess() and sys.stderr.isatty()


def _ignore_step(*_: Any) -> None:
    """Have the steps counted, of which a single program would not tell."""
