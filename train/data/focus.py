"""Where a picture counts most: boxes, such as those of faces, and what they make of a loss.

A face is a hundredth of a standing person's picture, and so of the loss, and most of who it is.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def density(
    boxes: Sequence[Box], height: int, width: int, cell: int = 1
) -> Float[np.ndarray, "y x"]:
    """How much of all boxes lies on each cell of a picture, with mean 1.

    Every box that is at least partly in the picture counts alike, however small it is. Without
    any, each cell has 1.

    Args:
        height: of the picture, pixels; a multiple of `cell`.
        width: likewise.
        cell: side of a cell, pixels; 8 for FLUX's latents.
    """
    shape = (height // cell, width // cell)
    found = [
        np.outer(_overlap(top, bottom, shape[0], cell), _overlap(left, right, shape[1], cell))
        for left, top, right, bottom in boxes
    ]
    found = [one / one.mean() for one in found if one.any()]
    return np.mean(found or [np.ones(shape)], axis=0).astype(np.float32)


def scaled(
    boxes: Sequence[Box], across: float, down: float, left: float = 0, top: float = 0
) -> tuple[Box, ...]:
    """The boxes of a picture that is scaled so, and then cut from `left` and `top` on."""
    return tuple(
        (x0 * across - left, y0 * down - top, x1 * across - left, y1 * down - top)
        for x0, y0, x1, y1 in boxes
    )


def _overlap(start: float, end: float, cells: int, cell: int) -> Float[np.ndarray, "{cells}"]:
    """Pixels of each cell of a row, or column, that lie from `start` to `end`."""
    first = np.arange(cells, dtype=np.float64) * cell
    return np.maximum(np.minimum(end, first + cell) - np.maximum(start, first), 0)
