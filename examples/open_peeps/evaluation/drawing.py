"""The pictures that are compared: what the model draws, and what it is to be judged against."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from examples.open_peeps.evaluation.triples import Triple
from examples.open_peeps.world.render import picture
from ic_jax import InstantCharacterPipeline
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.vae import Vae

BATCH = 50  # pictures drawn at once
Pictures = Float[np.ndarray, "n h w 3"]  # in 0..1, one for each triple


def draw(
    pipe: InstantCharacterPipeline,
    asked: Sequence[Triple],
    seed: int,
    *,
    name: str = "drawing",
    prompt: Callable[[Triple], str] = lambda one: one.prompt,
    reference: Callable[[int], np.ndarray | SubjectFeatures] | None = None,
    subject: bool = True,
    subject_scale: float | None = None,
) -> Pictures:
    """What the model makes of every triple, each from noise of its own.

    Args:
        seed: another gives other noise for all.
        name: of the progress bar.
        reference: by the triple's number; by default its own.
        subject: whether any reference is shown.
        subject_scale: by default the model's own.
    """
    shown: Callable[[int], Any] = reference or (lambda n: asked[n].reference)
    parts = []
    for start in tqdm(range(0, len(asked), BATCH), desc=name, unit="batch", leave=False):
        # The last batch is filled up with earlier ones: one shape, one compilation.
        numbers = [n % len(asked) for n in range(start, start + min(BATCH, len(asked)))]
        drawn = pipe(
            [prompt(asked[n]) for n in numbers],
            seed=[1000 * seed + n for n in numbers],
            subject_image=[shown(n) for n in numbers] if subject else None,
            subject_scale=subject_scale,
            output_type="np",
        ).images
        parts.append(np.asarray(drawn)[: len(asked) - start])
    return np.concatenate(parts)


def controls(
    pipe: InstantCharacterPipeline, asked: Sequence[Triple], seed: int
) -> dict[str, Pictures]:
    """What the model draws of nobody, of somebody else, and of words."""

    def another(n: int) -> np.ndarray:
        return asked[(n + 1) % len(asked)].reference

    return {
        "no subject": draw(pipe, asked, seed, name="no subject", subject=False),
        "another's reference": draw(
            pipe, asked, seed, name="another's reference", reference=another
        ),
        "identity in words": draw(
            pipe, asked, seed, name="in words", prompt=lambda one: one.full, subject=False
        ),
    }


def exact(vae: Vae, asked: Sequence[Triple], side: int) -> dict[str, Pictures]:
    """The reference's own picture instead of the one asked for, and the true one as the
    autoencoder leaves it: no model that draws with it can do better."""
    unit = np.float32(255)
    seen = np.stack([picture(one.identity, one.seen, side) for one in asked])
    true = np.stack([picture(one.identity, one.view, side) for one in asked])

    @jax.jit
    def there_and_back(vae: Vae, x: jax.Array) -> jax.Array:
        return vae.decode(vae.encode(x)[0])

    back = [there_and_back(vae, true[n : n + BATCH] / unit * 2 - 1) for n in _starts(true)]
    return {
        "the reference itself": seen / unit,
        "the true picture through the VAE": np.clip(
            np.concatenate(jax.device_get(back)) / 2 + 0.5, 0, 1
        ).astype(np.float32),
    }


def _starts(pictures: np.ndarray) -> range:
    return range(0, len(pictures), BATCH)
