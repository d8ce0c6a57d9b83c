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
STRIP = 8  # th part of a square: a row of two of 128 pixels is one of 272, a bucket at 192
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
    beside: tuple[tuple[Identity, ...], ...] = ()  # of each view, who else is in the picture


def write_character(job: WriteJob) -> list[dict[str, Any]]:
    """Render the reference and the views into the folder and return their metadata.

    All files are beside the metadata and none in a sub-folder, so that a reader of the folder
    takes the pictures that the metadata names and does not take masks for pictures.
    """
    rng = np.random.default_rng(job.seed)
    if job.beside:
        shown = zip(views(rng, job.views), job.beside, strict=True)
        return [_write_row(job, n, view, others, rng) for n, (view, others) in enumerate(shown)]
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


def _write_row(
    job: WriteJob,
    number: int,
    view: View,
    others: tuple[Identity, ...],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Write a picture of people side by side, all in one view, each in a square of their own.

    A strip of ground on the right gives it the shape of a bucket, so that training scales nothing
    and the squares lie where a model of one square knows its first.
    """
    stem, side = f"{job.identity}-{number:03d}-{view}", job.size
    file, mask = f"{stem}{PICTURE}", f"{stem}{MASK}"
    people = (job.identity, *others)
    strip = np.zeros((side, side // STRIP, 4), np.uint8)
    pixels = np.concatenate([*(render(person, view, side) for person in people), strip], axis=1)
    Image.fromarray(over(pixels, GROUND[view.ground])).save(job.folder / file)
    Image.fromarray(pixels[..., 3]).save(job.folder / mask)
    boxes = focus_boxes(body_kind(view.body), side)
    return {
        "file": file,
        "caption": captions.without_identity(view, rng),
        "subjects": [
            {"character": str(person), "box": [n * side, 0, (n + 1) * side, side]}
            for n, person in enumerate(people)
        ],
        "mask": mask,
        "view": view.body,
        "style": "open-peeps",
        "focus": [
            [left + n * side, top, right + n * side, bottom]
            for n in range(len(people))
            for left, top, right, bottom in boxes
        ],
    }
