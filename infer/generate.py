"""`python -m infer`: draw pictures and say what was drawn and how long it took."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array
from PIL import Image
from tqdm import tqdm

from ic_jax import InstantCharacterPipeline, auto_mesh, multihost
from ic_jax.cli import say
from ic_jax.models.features import SubjectFeatures
from ic_jax.pipeline import StepCallback
from ic_jax.version import __version__
from infer import demo, options, output
from infer.output import Job
from infer.timing import Stopwatch

DEFAULT_OUT = Path("out.png")
NEGATIVE = None  # among prompts
Ahead = dict[str | None, tuple[Array, Array]]


def generate(o: argparse.Namespace) -> None:
    if o.model is None:
        demo.fill(o)
    loras = options.loras(o)
    asked = output.jobs(o.out or DEFAULT_OUT, options.prompts(o), options.seeds(o))
    options.check(o)
    mesh = auto_mesh.for_inference(o.mesh, o.model, o.dtype)
    todo = _todo(o, asked, mesh)
    if todo:
        _generate(o, mesh, todo, loras)


def _todo(o: argparse.Namespace, asked: list[Job], mesh: Mesh | None) -> list[Job]:
    """What is drawn here: all hosts draw together on a mesh of all, otherwise each its share.

    A host's share does not depend on what is there, since hosts see that at different times.
    """
    together = _spans_hosts(mesh)
    own = asked if together else asked[multihost.process_index() :: multihost.process_count()]

    def left() -> list[int]:
        if not own:
            return []
        output.prepare(own)
        every = o.overwrite or o.out is None
        found = set(own if every else output.missing(own, partial(_metadata, o)))
        if len(found) < len(own):
            say(f"{len(own) - len(found)} of {len(own)} pictures are there already")
        return [i for i, job in enumerate(own) if job in found]

    return [own[i] for i in (multihost.broadcast_json("pictures", left) if together else left())]


def _spans_hosts(mesh: Mesh | None) -> bool:
    return mesh is not None and mesh.is_multi_process


def _generate(
    o: argparse.Namespace,
    mesh: Mesh | None,
    todo: list[Job],
    loras: list[tuple[Path, float, str | None]],
) -> None:
    watch = Stopwatch()
    pipe = InstantCharacterPipeline.from_pretrained(
        o.model, o.dtype, verify=not o.no_verify, mesh=mesh, encoders=o.encoders
    )
    for file, weight, trigger in loras:
        pipe.load_lora(file, weight, trigger)
    say(f"loaded {o.model}: {watch.lap()}")
    subject = None
    if o.subject is not None:
        subject = jax.block_until_ready(pipe.encode_subject(o.subject, o.subject_fit))
        say(f"encoded {o.subject}: {watch.lap()}")
    ahead = _ahead(pipe, o, todo)
    # One picture for each part of the batch's axes.
    rows = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    for first in range(0, len(todo), rows):
        some = todo[first : first + rows]
        # Rows that nobody asked for keep the shape, so that nothing is compiled for the last ones.
        images = _draw(pipe, o, [*some, *some[-1:] * (rows - len(some))], subject, ahead)
        if _spans_hosts(mesh) and not multihost.is_first():
            continue
        for job, image in zip(some, images[: len(some)], strict=True):
            output.save(image, job.file, _metadata(o, job))
            say(f"drew {job.file}: {watch.lap()}")


def _ahead(pipe: InstantCharacterPipeline, o: argparse.Namespace, todo: list[Job]) -> Ahead | None:
    """Embeddings of every prompt where the encoders are freed, so that T5 is read once."""
    if o.encoders == "keep":
        return None
    length = o.max_sequence_length
    made: Ahead = {}
    for prompt in dict.fromkeys(job.prompt for job in todo):
        made[prompt] = pipe.encode_prompt(prompt, o.prompt_2, length)
    if o.true_cfg_scale != 1.0:
        made[NEGATIVE] = pipe.encode_prompt(o.negative_prompt or "", None, length, triggers=False)
    return made


def _texts(o: argparse.Namespace, some: list[Job], ahead: Ahead | None) -> dict[str, Any]:
    """What the pipeline takes as the prompts of some pictures."""
    if ahead is None:
        own = {"prompt_2": o.prompt_2, "negative_prompt": o.negative_prompt}
        return {"prompt": [job.prompt for job in some], **own}
    pairs = zip(*(ahead[job.prompt] for job in some), strict=True)
    embeds, pooled = (x[0] if len(x) == 1 else jnp.concatenate(x) for x in pairs)
    given = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    if NEGATIVE in ahead:
        embeds, pooled = ahead[NEGATIVE]
        given |= {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}
    return given


def _draw(
    pipe: InstantCharacterPipeline,
    o: argparse.Namespace,
    some: list[Job],
    subject: SubjectFeatures | None,
    ahead: Ahead | None,
) -> list[Image.Image]:
    with _progress(o, some[0].prompt) as callback:
        result = pipe(
            subject_image=subject,
            seed=[job.seed for job in some],
            callback_on_step_end=callback,
            **_texts(o, some, ahead),
            **{name: getattr(o, name) for name in options.SETTINGS},
        )
    assert isinstance(result.images, list)  # output_type is "pil"
    return result.images


@contextmanager
def _progress(o: argparse.Namespace, prompt: str) -> Iterator[StepCallback | None]:
    """A bar over the steps, where somebody looks at it; otherwise the loop stays one program."""
    if o.no_progress or multihost.is_multiprocess() or not sys.stderr.isatty():
        yield None
        return
    steps = len(o.sigmas) if o.sigmas else o.num_inference_steps
    with tqdm(total=steps, desc=prompt[:40] or "drawing", unit="step", leave=False) as bar:

        def advance(_pipe: Any, _step: int, _timestep: float, values: dict[str, Any]) -> None:
            jax.block_until_ready(values["latents"])  # or the bar would count what is queued
            bar.update()

        yield advance


def _metadata(o: argparse.Namespace, job: Job) -> dict[str, Any]:
    arguments = {name: getattr(o, name) for name in options.PASSED_ON}
    files = {
        name: None if v is None else str(v)
        for name, v in {"model": o.model, "subject": o.subject}.items()
    }
    return {
        "ic_jax": __version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "prompt": job.prompt,
        "seed": job.seed,
        **files,
        **arguments,
        "subject_fit": o.subject_fit,
        "dtype": o.dtype,
        "lora": o.lora,
        "trigger": o.trigger,
    }
