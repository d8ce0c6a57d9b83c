"""Picture, mask and metadata files of one character: the work of one worker process.

Imports no JAX, so that a pool of workers starts quickly.
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


class WriteJob(NamedTuple):
    """Character to render and write."""

    folder: Path
    identity: Identity
    seed: tuple[int, ...]  # of the views and the words of the captions
    views: int
    size: int
    captions: str  # WITH_IDENTITY or WITHOUT_IDENTITY


def write_character(job: WriteJob) -> list[dict[str, Any]]:
    """Render the reference and the views into the folder and return their metadata.

    All files are beside the metadata and none in a sub-folder, so that a reader of the folder
    takes the pictures that the metadata names and does not take masks for pictures.
    """
    rng = np.random.default_rng(job.seed)
    reference = reference_view(rng)
    named_views = [(REFERENCE, reference)]
    named_views += [(view.body, view) for view in views(rng, job.views, apart_from=reference.body)]
    return [_write_view(job, n, name, view, rng) for n, (name, view) in enumerate(named_views)]


def _write_view(
    job: WriteJob, number: int, name: str, view: View, rng: np.random.Generator
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
