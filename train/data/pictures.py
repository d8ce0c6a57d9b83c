"""From decoded pictures to what a step takes: the target's crop, the reference's squares."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ic_jax.preprocessing.images import tiles
from train.data.buckets import Size
from train.data.decode import decode_image, decode_mask, resized
from train.data.ingest import FIGURE
from train.data.records import Record


@dataclass(frozen=True)
class Augment:
    """What is random in preparing pictures. Targets are never flipped: captions say
    left and right, and clothes have writing on them."""

    shift: bool = True  # the pad of the reference and the crop of the target [WithAnyone]
    flip: float = 0.1  # share of references mirrored; light: characters are not symmetric [ours]

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip {self.flip}; expected 0 to 1")


CENTRED = Augment(shift=False, flip=0.0)  # for evaluation: nothing is random


class Shown(NamedTuple):
    """A picture, and the figure in it where that is known."""

    rgb: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] | None


class Crop(NamedTuple):
    """A picture scaled to `tall` and `wide`, then cut from `top` and `left` on; pixels."""

    tall: int
    wide: int
    top: int
    left: int


def decoded(record: Record) -> Shown:
    """A record's pixels; ImageError if the picture or its mask is damaged."""
    rgb, alpha = decode_image(record.image)
    return Shown(rgb, decode_mask(record.mask) if record.mask else alpha)


def prepare_target(
    picture: Shown, size: Size, augment: Augment, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture scaled to cover `size` and cut to it, at a random place or the middle."""
    return cut(picture, size, crop(picture.rgb.shape[:2], size, augment, rng))


def crop(shape: Size, size: Size, augment: Augment, rng: np.random.Generator) -> Crop:
    """How `prepare_target` makes `size` of a picture of that height and width."""
    scale = max(size[0] / shape[0], size[1] / shape[1])
    tall, wide = max(size[0], round(shape[0] * scale)), max(size[1], round(shape[1] * scale))
    top, left = (_place(room, augment, rng) for room in (tall - size[0], wide - size[1]))
    return Crop(tall, wide, top, left)


def cut(picture: Shown, size: Size, at: Crop) -> UInt8[np.ndarray, "h w 3"]:
    """The picture's part of that size."""
    scaled = resized(picture.rgb, at.wide, at.tall)
    return scaled[at.top : at.top + size[0], at.left : at.left + size[1]]


def prepare_reference(
    picture: Shown, side: int, augment: Augment, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "{side} {side} 3"], UInt8[np.ndarray, "4 {side} {side} 3"], bool]:
    """Cut out onto white, cropped to the figure, perhaps mirrored, padded to a square.

    Without a mask or alpha channel the whole picture counts as the figure.

    Returns:
        The square at `side` pixels, its four tiles (`images.tiles`), and whether it was
        mirrored.
    """
    figure = cut_out(picture)
    mirrored = bool(rng.random() < augment.flip)
    if mirrored:
        figure = figure[:, ::-1]
    height, width = figure.shape[:2]
    longer = max(height, width)
    square = np.full((longer, longer, 3), 255, np.uint8)
    top, left = _place(longer - height, augment, rng), _place(longer - width, augment, rng)
    square[top : top + height, left : left + width] = figure
    low, high = tiles(square, side)
    return low, high, mirrored


def cut_out(picture: Shown) -> UInt8[np.ndarray, "h w 3"]:
    """The figure on white, cropped to it; the whole picture where no mask says what it is."""
    rgb, mask = picture
    if mask is None:
        return rgb
    figure = mask >= FIGURE
    rows, columns = np.flatnonzero(figure.any(axis=1)), np.flatnonzero(figure.any(axis=0))
    if len(rows):
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        rgb, mask = rgb[box], mask[box]
    share = mask[:, :, None].astype(np.uint16)
    return ((rgb * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)


def _place(room: int, augment: Augment, rng: np.random.Generator) -> int:
    return int(rng.random() * (room + 1)) if augment.shift else room // 2
