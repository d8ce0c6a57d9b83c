"""One character's pictures, masks and lines of metadata: what a worker process does.

Imports no JAX, so that a pool of workers starts at once.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from examples.open_peeps.world import captions
from examples.open_peeps.world.palette import GROUND
from examples.open_peeps.world.people import reference_view, views
from examples.open_peeps.world.render import Identity, View, body_kind, focus_boxes, over, render

REFERENCE = "reference"
PICTURE, MASK = ".picture.png", ".mask.png"
WITH_IDENTITY, WITHOUT_IDENTITY = "with-identity", "without-identity"


class Job(NamedTuple):
    """One character to write; `seed` decides its views and words, `captions` their kind."""

    folder: Path
    identity: Identity
    seed: tuple[int, ...]
    views: int
    size: int
    captions: str


def write_character(job: Job) -> list[dict[str, Any]]:
    """Draw the reference and the views into the folder; returns their metadata.

    All lie beside the metadata, none in a folder of its own: so a reader that is given the folder
    takes what the metadata names, and not the masks for pictures.
    """
    rng = np.random.default_rng(job.seed)
    reference = reference_view(rng)
    named = [(REFERENCE, reference)]
    named += [(view.body, view) for view in views(rng, job.views, apart_from=reference.body)]
    return [_write_view(job, number, *one, rng) for number, one in enumerate(named)]


def _write_view(
    job: Job, number: int, name: str, view: View, rng: np.random.Generator
) -> dict[str, Any]:
    stem = f"{job.identity}-{number:03d}-{view}"
    file, mask = f"{stem}{PICTURE}", f"{stem}{MASK}"
    pixels = render(job.identity, view, job.size)
    Image.fromarray(over(pixels, GROUND[view.ground])).save(job.folder / file)
    Image.fromarray(pixels[..., 3]).save(job.folder / mask)
    if job.captions == WITH_IDENTITY:
        caption = captions.with_identity(job.identity, view, rng)
    else:
        caption = captions.without_identity(view, rng)
    return {
        "file": file,
        "caption": caption,
        "character": str(job.identity),
        "mask": mask,
        "view": name,
        "style": "open-peeps",
        "focus": focus_boxes(body_kind(view.body), job.size),
    }
