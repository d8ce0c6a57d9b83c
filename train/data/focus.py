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

    Every box counts alike, however small it is, by the share of it that is in the picture; what of
    it was cut away is spread evenly, so that a sliver does not stand for a face. Without any box,
    each cell has 1.

    Args:
        height: of the picture, pixels; a multiple of `cell`.
        width: likewise.
        cell: side of a cell, pixels; 8 for FLUX's latents.
    """
    shape = (height // cell, width // cell)
    found = []
    for left, top, right, bottom in boxes:
        pixels = np.outer(
            _overlap(top, bottom, shape[0], cell), _overlap(left, right, shape[1], cell)
        )
        whole = (right - left) * (bottom - top)
        # By cells, pixels / pixels.mean() times the share, which may be 0.
        found.append(pixels * pixels.size / whole + max(0, 1 - pixels.sum() / whole))
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
