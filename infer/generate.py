"""`python -m infer`: draw pictures and say what was drawn and how long it took."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
from PIL import Image
from tqdm import tqdm

from ic_jax import InstantCharacterPipeline, cli
from ic_jax.cli import say
from ic_jax.features import SubjectFeatures
from ic_jax.pipeline import StepCallback
from ic_jax.version import __version__
from infer import compiled, demo, options, output
from infer.timing import Stopwatch

DEFAULT_OUT = Path("out.png")


def main(arguments: list[str] | None = None) -> int:
    parsed = options.parser().parse_args(arguments)
    return cli.run(lambda: generate(parsed), debug=parsed.debug)


def generate(o: argparse.Namespace) -> None:
    if o.model is None:
        demo.fill(o)
    prompts, seeds, loras = options.prompts(o), options.seeds(o), options.loras(o)
    options.check(o)
    files = output.names(o.out or DEFAULT_OUT, prompts, seeds)
    output.prepare(files, overwrite=o.overwrite or o.out is None)
    with nullcontext() if o.no_compile_cache else compiled.kept():
        _generate(o, prompts, seeds, loras, files)


def _generate(
    o: argparse.Namespace,
    prompts: list[str],
    seeds: list[int],
    loras: list[tuple[Path, float, str | None]],
    files: list[list[Path]],
) -> None:
    watch = Stopwatch()
    pipe = InstantCharacterPipeline.from_pretrained(
        o.model, o.dtype, verify=not o.no_verify, mesh=o.mesh
    )
    for file, weight, trigger in loras:
        pipe.load_lora(file, weight, trigger)
    say(f"loaded {o.model}: {watch.lap()}")
    subject = None
    if o.subject is not None:
        subject = jax.block_until_ready(pipe.encode_subject(o.subject, o.subject_fit))
        say(f"encoded {o.subject}: {watch.lap()}")
    for prompt, row in zip(prompts, files, strict=True):
        for seed, file in zip(seeds, row, strict=True):
            image = _draw(pipe, o, prompt, seed, subject)
            output.save(image, file, _metadata(o, prompt, seed))
            say(f"drew {file}: {watch.lap()}")


def _draw(
    pipe: InstantCharacterPipeline,
    o: argparse.Namespace,
    prompt: str,
    seed: int,
    subject: SubjectFeatures | None,
) -> Image.Image:
    with _progress(o, prompt) as callback:
        result = pipe(
            prompt,
            subject_image=subject,
            seed=seed,
            callback_on_step_end=callback,
            **{name: getattr(o, name) for name in options.PASSED_ON},
        )
    (image,) = result.images
    assert isinstance(image, Image.Image)  # output_type is "pil"
    return image


@contextmanager
def _progress(o: argparse.Namespace, prompt: str) -> Iterator[StepCallback | None]:
    """A bar over the steps, where somebody looks at it; otherwise the loop stays one program."""
    if o.no_progress or not sys.stderr.isatty():
        yield None
        return
    steps = len(o.sigmas) if o.sigmas else o.num_inference_steps
    with tqdm(total=steps, desc=prompt[:40] or "drawing", unit="step", leave=False) as bar:

        def advance(_pipe: Any, _step: int, _timestep: float, values: dict[str, Any]) -> None:
            jax.block_until_ready(values["latents"])  # or the bar would count what is queued
            bar.update()

        yield advance


def _metadata(o: argparse.Namespace, prompt: str, seed: int) -> dict[str, Any]:
    arguments = {name: getattr(o, name) for name in options.PASSED_ON}
    files = {
        name: None if v is None else str(v)
        for name, v in {"model": o.model, "subject": o.subject}.items()
    }
    return {
        "ic_jax": __version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "prompt": prompt,
        "seed": seed,
        **files,
        **arguments,
        "subject_fit": o.subject_fit,
        "dtype": o.dtype,
        "lora": o.lora,
        "trigger": o.trigger,
    }
