"""Regions of a picture, as the weight of each image token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from ic_jax.preprocessing.images import ImageError, Picture, read_rgb

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the sides
Region = str | Sequence[float] | Picture

NAMES: dict[str, Box] = {
    "all": (0.0, 0.0, 1.0, 1.0),
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
    "center": (0.25, 0.25, 0.75, 0.75),
}


def region_weights(region: Region, grid: tuple[int, int]) -> Float[np.ndarray, "n"]:
    """Return the weight of each image token, float32: the share of its pixels in the region.

    Args:
        region: a key of `NAMES`; a box (left, top, right, bottom), each from 0 to 1; or a mask: a
            picture, a path or an array, white where the region is and grey at soft edges, which is
            stretched to the picture.
        grid: height and width of the picture in tokens.

    Raises:
        ValueError: not a region, or one that is empty.
        ImageError: a mask that cannot be read.
    """
    if isinstance(region, tuple | list) or (isinstance(region, str) and region in NAMES):
        return box_weights(box_of(region), grid)
    return _mask_weights(region, grid)


def box_of(region: str | Sequence[float]) -> Box:
    """Return the box of a key of `NAMES`, or of four numbers; ValueError if they are no box."""
    box = NAMES[region] if isinstance(region, str) else region
    numbers = len(box) == 4 and all(isinstance(x, int | float | np.number) for x in box)
    if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise ValueError(
            f"region {tuple(box)} is no box; give (left, top, right, bottom), each from 0 to 1, "
            "such as (0.5, 0, 1, 1)"
        )
    left, top, right, bottom = (float(x) for x in box)
    return left, top, right, bottom


def box_weights(box: Box, grid: tuple[int, int]) -> Float[np.ndarray, "n"]:
    """Return the share of each image token's pixels that lies in a box, which may reach beyond."""

    def covered(start: float, end: float, count: int) -> np.ndarray:
        at = np.arange(count)
        return np.clip(np.minimum(at + 1, end * count) - np.maximum(at, start * count), 0, 1)

    left, top, right, bottom = box
    rows, columns = covered(top, bottom, grid[0]), covered(left, right, grid[1])
    return np.outer(rows, columns).reshape(-1).astype(np.float32)


def _mask_weights(mask: Any, grid: tuple[int, int]) -> Float[np.ndarray, "n"]:
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "iu" and mask.max(initial=0) == 1:
        mask = mask.astype(bool)  # otherwise as dark as 1 of 255
    try:
        pixels = Image.fromarray(read_rgb(mask)).convert("L")
    except ImageError as error:
        names = f"; names of regions are {', '.join(NAMES)}" if isinstance(mask, str) else ""
        raise ImageError(f"a region's mask: {error}{names}") from None
    height, width = grid
    weights = np.asarray(pixels.resize((width, height), Image.Resampling.BOX), np.float32) / 255
    if not weights.any():
        raise ValueError("a region's mask is black, which is nowhere; make the region white")
    return weights.reshape(-1)
