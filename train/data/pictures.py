"""Preparation of decoded pictures for a training step: target crops and reference squares."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ic_jax.preprocessing.images import tiles
from train.data.buckets import Size
from train.data.decode import FIGURE, decode_image, decode_mask, resize

if TYPE_CHECKING:  # it needs tensorflow-datasets, which takes seconds to import
    from train.data.records import Record


@dataclass(frozen=True)
class Augment:
    """Random augmentation of the pictures.

    Targets are never mirrored: captions say left and right, and clothes have writing on them.
    """

    shift: bool = True  # where the reference is padded and the target cropped [WithAnyone]
    flip: float = 0.1  # share of mirrored references; low: characters are not symmetric [ours]

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip {self.flip}; expected 0 to 1")


CENTRED = Augment(shift=False, flip=0.0)  # for evaluation: nothing is random


class MaskedPicture(NamedTuple):
    """Picture with the mask of its character, None where no mask is known."""

    rgb: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] | None


class Crop(NamedTuple):
    """Scaling of a picture to (`height`, `width`), then a crop from (`top`, `left`); pixels."""

    height: int
    width: int
    top: int
    left: int


def decode_pixels(record: "Record") -> MaskedPicture:
    """Decode the picture and mask of a record; ImageError if one is damaged."""
    rgb, alpha = decode_image(record.image)
    return MaskedPicture(rgb, decode_mask(record.mask) if record.mask else alpha)


def crop_to_character(picture: MaskedPicture, record: "Record", character: str) -> MaskedPicture:
    """Crop a record's picture to the box around one of its characters, if it has one."""
    box = record.box_of(character)
    if box is None:
        return picture
    left, top = (math.floor(x) for x in box[:2])
    right, bottom = (math.ceil(x) for x in box[2:])
    part = np.s_[top:bottom, left:right]
    return MaskedPicture(picture.rgb[part], None if picture.mask is None else picture.mask[part])


def decode_character(record: "Record") -> MaskedPicture:
    """Decode a record's picture, cropped to its character; ImageError if it is damaged."""
    return crop_to_character(decode_pixels(record), record, record.character)


def prepare_target(
    picture: MaskedPicture, size: Size, augment: Augment, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Scale a picture to cover `size` and crop it, at a random place or in the middle."""
    return apply_crop(picture, size, choose_crop(picture.rgb.shape[:2], size, augment, rng))


def choose_crop(shape: Size, size: Size, augment: Augment, rng: np.random.Generator) -> Crop:
    """Choose the crop to `size` of a picture of height and width `shape`."""
    scale = max(size[0] / shape[0], size[1] / shape[1])
    height, width = (max(size[i], round(shape[i] * scale)) for i in range(2))
    top, left = (_offset(room, augment, rng) for room in (height - size[0], width - size[1]))
    return Crop(height, width, top, left)


def apply_crop(picture: MaskedPicture, size: Size, crop: Crop) -> UInt8[np.ndarray, "h w 3"]:
    """Return the part of a scaled picture that a crop to `size` leaves."""
    scaled = resize(picture.rgb, crop.width, crop.height)
    return scaled[crop.top : crop.top + size[0], crop.left : crop.left + size[1]]


def prepare_reference(
    picture: MaskedPicture, side: int, augment: Augment, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "{side} {side} 3"], UInt8[np.ndarray, "4 {side} {side} 3"], bool]:
    """Cut the character out, perhaps mirror it, and pad it to a square on white.

    Without a mask the whole picture counts as the character.

    Returns:
        The square at `side` pixels, its four tiles (`images.tiles`), and whether the
        character was mirrored.
    """
    figure = cut_out(picture)
    mirrored = bool(rng.random() < augment.flip)
    if mirrored:
        figure = figure[:, ::-1]
    height, width = figure.shape[:2]
    longer = max(height, width)
    square = np.full((longer, longer, 3), 255, np.uint8)
    top, left = (_offset(longer - length, augment, rng) for length in (height, width))
    square[top : top + height, left : left + width] = figure
    low, high = tiles(square, side)
    return low, high, mirrored


def cut_out(picture: MaskedPicture) -> UInt8[np.ndarray, "h w 3"]:
    """Put the character on white and crop to it; without a mask, return the whole picture."""
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


def _offset(room: int, augment: Augment, rng: np.random.Generator) -> int:
    return int(rng.random() * (room + 1)) if augment.shift else room // 2
