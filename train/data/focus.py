"""Focus boxes: regions of a picture, such as faces, that are given extra weight in the loss.

A face covers a hundredth of the picture of a standing person, and so of the loss, but shows most of
the identity.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from train.data.boxes import Box, check_box


def density(
    boxes: Sequence[Box], height: int, width: int, cell: int = 1
) -> Float[np.ndarray, "y x"]:
    """Return the density of the boxes over the cells of a picture, with mean 1.

    Every box has the same total weight, whatever its size. Only the share of a box that lies in the
    picture is concentrated there; the rest is spread evenly, so that a sliver of a face that was
    cropped away does not count as a face. Without boxes every cell is 1.

    Args:
        boxes: boxes in pixels of the picture; they may reach beyond it.
        height: height of the picture in pixels; a multiple of `cell`.
        width: width of the picture in pixels; a multiple of `cell`.
        cell: side of a cell in pixels; 8 for FLUX's latents.
    """
    shape = (height // cell, width // cell)
    densities = []
    for left, top, right, bottom in boxes:
        pixels = np.outer(
            _overlap(top, bottom, shape[0], cell), _overlap(left, right, shape[1], cell)
        )
        area = (right - left) * (bottom - top)
        # pixels / pixels.mean() times the visible share, without dividing by a mean of 0.
        densities.append(pixels * pixels.size / area + max(0, 1 - pixels.sum() / area))
    return np.mean(densities or [np.ones(shape)], axis=0).astype(np.float32)


def _overlap(start: float, end: float, cells: int, cell: int) -> Float[np.ndarray, "{cells}"]:
    """Return the length in pixels that `start` to `end` shares with each cell of a line."""
    first = np.arange(cells, dtype=np.float64) * cell
    return np.maximum(np.minimum(end, first + cell) - np.maximum(start, first), 0)


def check_boxes(value: Any) -> tuple[Box, ...]:
    """Return the boxes that a source gives; ValueError if they are none."""
    expected = "expected a list of boxes, each [left, top, right, bottom] in pixels"
    if not isinstance(value, list):
        raise ValueError(f"focus is {value!r}; {expected}")
    return tuple(check_box(box, "focus", expected) for box in value)
