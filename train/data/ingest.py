"""Ingestion of one picture into a data set: checks, downscaling and encoding."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ic_jax.preprocessing.images import ImageError
from train.data.boxes import clip_boxes, scale_boxes
from train.data.buckets import covering_size
from train.data.decode import (
    FIGURE,
    decode_image,
    decode_mask,
    encode_jpeg,
    encode_png,
    inspect_file,
    resize,
)
from train.data.duplicates import difference_hash
from train.data.records import Record
from train.data.sources.entries import Entry
from train.data.sources.pictures import read_mask, read_picture
from train.data.subject_boxes import SubjectBox

MIN_SIDE = 32  # pixels; a smaller character cannot be recognised
MAX_RATIO = 4.0  # of the sides; the longest bucket, 2, would show less than half of the picture


class TooSmall(ImageError):
    """A picture that is left out on purpose, for its size."""


class Ingested(NamedTuple):
    """Record of a picture, and what only its pixels tell."""

    record: Record
    alpha: bool  # whether its own alpha channel is its mask
    look: bytes  # hash that similar pictures share all but a few bits of


def ingest(root: Path, entry: Entry, resolution: int, min_side: int = 0) -> Ingested:
    """Read, check and encode one picture of a source.

    The file is stored unchanged unless its format is unusual or its size exceeds the need of
    its bucket at `resolution`. A re-encoded picture becomes JPEG if it was one, else PNG,
    because JPEG makes rings around the lines of a drawing.

    Raises:
        TooSmall: its shorter side is below `min_side` pixels.
        ImageError: the picture cannot be used; the message gives the reason without the file.
    """
    data = read_picture(root, entry)
    rgb, alpha = decode_image(data)
    height, width = rgb.shape[:2]
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(
            f"is {width} x {height}; expected at least {MIN_SIDE} a side and no side more than "
            f"{MAX_RATIO:g} times the other"
        )
    if min(width, height) < min_side:
        raise TooSmall(f"has a side below --min-side {min_side}")
    separate = read_mask(root, entry)
    mask = alpha if separate is None else decode_mask(separate)
    if mask is not None:
        _check_mask(mask, width, height)
    focus = clip_boxes(entry.focus, width, height, "focus")
    subjects = _clipped(entry.subjects, mask, width, height)
    storable, jpeg = inspect_file(data)
    size = covering_size(width, height, resolution)
    scale = size[0] / width, size[1] / height
    look, from_alpha = difference_hash(rgb), separate is None and mask is not None
    from_alpha = from_alpha and bool(mask.min() < FIGURE)  # type: ignore[union-attr]
    if not storable or size != (width, height):
        rgb = resize(rgb, *size)
        data = encode_jpeg(rgb) if jpeg else encode_png(rgb)
    elif separate is None:
        mask = None  # the stored picture has it as its alpha channel
    record = Record(
        image=data,
        mask=b"" if mask is None else encode_png(resize(mask, *size)),
        **{name: getattr(entry, name) for name in ("caption", "character", "view", "style")},
        file=entry.file,
        width=size[0],
        height=size[1],
        focus=scale_boxes(focus, *scale),
        subjects=tuple(SubjectBox(s.character, *scale_boxes([s.box], *scale)) for s in subjects),
    )
    return Ingested(record, from_alpha, look)


def fingerprint(root: Path, entries: Iterable[Entry], *settings: object) -> str:
    """Hash the entries, the sizes and times of their files, and the settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for entry in entries:
        digest.update(repr(tuple(entry)).encode())
        files = (entry.part.file if entry.part else entry.file, entry.mask)
        for name in filter(None, files):
            try:
                status = (root / name).stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            except OSError:
                digest.update(b"unreadable")
    return digest.hexdigest()


def _clipped(
    subjects: Sequence[SubjectBox], mask: np.ndarray | None, width: int, height: int
) -> list[SubjectBox]:
    """Clip the characters' boxes; ImageError where one cannot be a reference."""
    boxes = clip_boxes([subject.box for subject in subjects], width, height, "subject")
    clipped = [SubjectBox(s.character, box) for s, box in zip(subjects, boxes, strict=True)]
    for name, (left, top, right, bottom) in clipped:
        if min(right - left, bottom - top) < MIN_SIDE:
            raise ImageError(
                f"its subject {name!r} is {right - left:g} x {bottom - top:g}; expected at least "
                f"{MIN_SIDE} a side"
            )
        part = np.s_[int(top) : math.ceil(bottom), int(left) : math.ceil(right)]
        if mask is not None and mask[part].max() < FIGURE:
            raise ImageError(f"its mask shows nothing of its subject {name!r}")
    return clipped


def _check_mask(mask: np.ndarray, width: int, height: int) -> None:
    if mask.shape != (height, width):
        raise ImageError(
            f"its mask is {mask.shape[1]} x {mask.shape[0]}; the picture is {width} x {height}"
        )
    if mask.max() < FIGURE:
        raise ImageError("its mask shows no character; it is transparent everywhere")
