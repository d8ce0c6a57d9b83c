"""Generated pictures to score, and the control pictures to compare them with."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from examples.open_peeps.evaluation.triples import Triple
from examples.open_peeps.world.render import picture
from ic_jax import InstantCharacterPipeline, SubjectPrompt
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.vae import Vae


class Question(Protocol):
    """Prompt and reference picture to generate from."""

    @property
    def prompt(self) -> str: ...

    @property
    def reference(self) -> np.ndarray: ...


BATCH = 50  # pictures generated at once
Q = TypeVar("Q", bound=Question)
Pictures = Float[np.ndarray, "n h w 3"]  # in 0..1, one for each triple


def generate(
    pipe: InstantCharacterPipeline,
    triples: Sequence[Q],
    seed: int,
    *,
    name: str = "generating",
    prompt: Callable[[Q], str] = lambda triple: triple.prompt,
    reference: Callable[[int], np.ndarray | SubjectFeatures] | None = None,
    subject: bool = True,
    subjects: Callable[[Q], list[SubjectPrompt]] | None = None,
    subject_scale: float | None = None,
    width: int | None = None,
) -> Pictures:
    """Generate one picture for every triple, each from different noise.

    Args:
        seed: changes the noise of all pictures.
        name: label of the progress bar.
        prompt: returns the prompt of a triple.
        reference: returns the reference by the triple's number; by default the triple's own.
        subject: False to generate without any reference.
        subjects: returns the subjects of a triple, in place of its reference.
        subject_scale: by default the model's own.
        width: of the pictures, in pixels; by default the model's own.
    """
    reference_of: Callable[[int], Any] = reference or (lambda n: triples[n].reference)
    batches = []
    for start in tqdm(range(0, len(triples), BATCH), desc=name, unit="batch", leave=False):
        # The last batch is filled up with the first triples: one shape, one compilation.
        numbers = [n % len(triples) for n in range(start, start + min(BATCH, len(triples)))]
        images = pipe(
            [prompt(triples[n]) for n in numbers],
            seed=[1000 * seed + n for n in numbers],
            subject_image=None if subjects or not subject else [reference_of(n) for n in numbers],
            subjects=[subjects(triples[n]) for n in numbers] if subjects else None,
            subject_scale=subject_scale,
            width=width,
            output_type="np",
        ).images
        batches.append(np.asarray(images)[: len(triples) - start])
    return np.concatenate(batches)


def controls(
    pipe: InstantCharacterPipeline, triples: Sequence[Triple], seed: int
) -> dict[str, Pictures]:
    """Generate pictures for other questions than the triples' own.

    Without a subject; with another person's reference; with the identity in words; and, in a world
    whose captions have several forms, with the prompt in fragments.
    """

    def another(n: int) -> np.ndarray:
        return triples[(n + 1) % len(triples)].reference

    rows = {
        "no subject": generate(pipe, triples, seed, name="no subject", subject=False),
        "another's reference": generate(
            pipe, triples, seed, name="another's reference", reference=another
        ),
        "identity in words": generate(
            pipe,
            triples,
            seed,
            name="identity in words",
            prompt=lambda triple: triple.full_prompt,
            subject=False,
        ),
    }
    if triples[0].fragments:
        rows["in fragments"] = generate(
            pipe, triples, seed, name="in fragments", prompt=lambda triple: triple.fragments or ""
        )
    return rows


def exact(vae: Vae, triples: Sequence[Triple], side: int) -> dict[str, Pictures]:
    """Render the reference's own view, and the true view as the autoencoder reconstructs it.

    The reconstruction is an upper bound for every model that decodes with this autoencoder.
    """
    copies = np.stack([picture(t.identity, t.reference_view, side) for t in triples])
    truth = np.stack([picture(t.identity, t.view, side) for t in triples])

    @jax.jit
    def reconstruct(vae: Vae, x: jax.Array) -> jax.Array:
        return vae.decode(vae.encode(x)[0])

    unit = np.float32(255)
    batches = [
        reconstruct(vae, truth[n : n + BATCH] / unit * 2 - 1) for n in range(0, len(truth), BATCH)
    ]
    reconstructed = np.clip(np.concatenate(jax.device_get(batches)) / 2 + 0.5, 0, 1)
    return {
        "the reference itself": copies / unit,
        "the true picture through the VAE": reconstructed.astype(np.float32),
    }
