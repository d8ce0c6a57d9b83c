"""One picture on its way into a data set: checked, and made no larger than training needs."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ic_jax.preprocessing.images import ImageError
from train.data.buckets import covering
from train.data.decode import (
    decode_image,
    decode_mask,
    encode_jpeg,
    encode_png,
    kept_as_is,
    resized,
)
from train.data.focus import Box, scaled
from train.data.records import Record
from train.data.sources import Entry

MIN_SIDE = 32  # pixels; less than that of a character is a blot
MAX_RATIO = 4.0  # of the sides; the longest bucket, 2, would show less than half of it
FIGURE = 128  # of 255: where a mask says that the character is


def ingest(root: Path, entry: Entry, resolution: int) -> Record:
    """Read, check and encode one picture.

    The file's own bytes are kept unless they are of an odd kind or larger than its bucket at
    `resolution` needs. What is re-encoded becomes JPEG if it was one, else PNG: JPEG makes
    rings around the lines of a drawing.

    Raises:
        ImageError: the reason why it cannot be used, without its name.
    """
    data = _bytes(root / entry.file)
    rgb, alpha = decode_image(data)
    height, width = rgb.shape[:2]
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(
            f"is {width} x {height}; expected at least {MIN_SIDE} a side and no side more than "
            f"{MAX_RATIO:g} times the other"
        )
    mask = decode_mask(_bytes(root / entry.mask)) if entry.mask else alpha
    if mask is not None:
        _check_mask(mask, width, height)
    focus = _within(entry.focus, width, height)
    kept, jpeg = kept_as_is(data)
    small = covering(width, height, resolution)
    if not kept or small != (width, height):
        rgb = resized(rgb, *small)
        data = encode_jpeg(rgb) if jpeg else encode_png(rgb)
    elif not entry.mask:
        mask = None  # it is in the picture's own alpha channel
    return Record(
        image=data,
        mask=b"" if mask is None else encode_png(resized(mask, *small)),
        **{name: getattr(entry, name) for name in ("caption", "character", "view", "style")},
        file=entry.file,
        width=small[0],
        height=small[1],
        focus=scaled(focus, small[0] / width, small[1] / height),
    )


def fingerprint(root: Path, entries: list[Entry], *settings: object) -> str:
    """Changes with the entries, the files' sizes and times, and the settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for entry in entries:
        digest.update(repr(tuple(entry)).encode())
        for name in filter(None, (entry.file, entry.mask)):
            try:
                status = (root / name).stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            except OSError:
                digest.update(b"unreadable")
    return digest.hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path.name} cannot be read ({error.strerror})") from None
    if not data:
        raise ImageError(f"{path.name} is empty")
    return data


def _within(boxes: Sequence[Box], width: int, height: int) -> tuple[Box, ...]:
    """Boxes cut to the picture: detectors' reach a little beyond faces at its edge."""
    found = []
    for box in boxes:
        left, top, right, bottom = box
        cut = (max(0, left), max(0, top), min(width, right), min(height, bottom))
        if cut[0] >= cut[2] or cut[1] >= cut[3]:
            raise ImageError(f"its focus {list(box)} lies outside the picture, {width} x {height}")
        found.append(cut)
    return tuple(found)


def _check_mask(mask: np.ndarray, width: int, height: int) -> None:
    if mask.shape != (height, width):
        raise ImageError(
            f"its mask is {mask.shape[1]} x {mask.shape[0]}; the picture is {width} x {height}"
        )
    if mask.max() < FIGURE:
        raise ImageError("its mask shows no character; it is transparent everywhere")
