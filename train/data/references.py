"""References of a sample: one for each character of its target, and where each of them is."""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from ic_jax.preprocessing.regions import box_weights
from train.data.boxes import scale_boxes
from train.data.buckets import Size
from train.data.dataset import Dataset
from train.data.errors import DataError
from train.data.pictures import (
    Augment,
    Crop,
    MaskedPicture,
    crop_to_character,
    decode_pixels,
    prepare_reference,
)
from train.data.records import Record

WHITE = 255  # in place of the references of further characters, where the target shows none


class SampleRecords:
    """Records of one sample, each read and decoded once."""

    def __init__(self, dataset: Dataset) -> None:
        self.read = cache(dataset.read)
        self.decode = cache(lambda number: decode_pixels(self.read(number)))

    def picture_of(self, name: str, number: int) -> MaskedPicture:
        """Return the picture of a character in a record, cropped to their box if there is one."""
        return crop_to_character(self.decode(number), self.read(number), name)


def prepare_references(
    records: SampleRecords,
    target: Record,
    numbers: list[int],
    side: int,
    augment: Augment,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "*k s s 3"], UInt8[np.ndarray, "*k 4 s s 3"], bool]:
    """Prepare the reference of each character of a target (`pictures.prepare_reference`).

    Args:
        records: where they are read.
        target: record of the target.
        numbers: record numbers of the references, in the order of the target's characters; -1
            where it shows fewer. Of a single one, the results have no axis k.
        side: side of the squares in pixels.
        augment: augmentation of each.
        rng: source of what is random.

    Returns:
        The squares, their tiles, and whether the first was mirrored.

    Raises:
        DataError: the target shows another number of characters.
        ImageError: a reference is damaged.
    """
    shown = [number for number in numbers if number >= 0]
    if len(numbers) > 1 and len(shown) != len(target.characters):
        raise DataError(f"{target.file}: shows {len(target.characters)} characters, not as indexed")
    prepared = [
        prepare_reference(records.picture_of(name, number), side, augment, rng)
        for number, name in zip(shown, target.characters, strict=False)
    ]
    low, high, mirrored = prepared[0]
    if len(numbers) == 1:
        return low, high, mirrored
    missing = [(0, len(numbers) - len(shown))]
    squares, tiles = (
        np.pad(np.stack(x), missing + [(0, 0)] * x[0].ndim, constant_values=WHITE)
        for x in ([low for low, _, _ in prepared], [high for _, high, _ in prepared])
    )
    return squares, tiles, mirrored


def subject_regions(
    target: Record, crop: Crop, size: Size, token: int, count: int
) -> Float[np.ndarray, "{count} n"]:
    """Return the weight of each character of a target at its image tokens, as in sampling.

    A character without a box is everywhere, one that the target does not show nowhere.
    """
    grid = size[0] // token, size[1] // token
    weights = np.zeros((count, grid[0] * grid[1]), np.float32)
    if not target.subjects:
        weights[0] = 1
    scale = crop.width / target.width, crop.height / target.height
    boxes = [subject.box for subject in target.subjects]
    for row, box in zip(weights, scale_boxes(boxes, *scale, crop.left, crop.top), strict=False):
        left, top, right, bottom = box
        shares = left / size[1], top / size[0], right / size[1], bottom / size[0]
        row[:] = box_weights(shares, grid)
    return weights
