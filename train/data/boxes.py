"""Boxes in pictures: left, top, right, bottom in pixels."""

from collections.abc import Sequence
from typing import Any

from ic_jax.preprocessing.images import ImageError

Box = tuple[float, float, float, float]
LARGEST = 2**31  # coordinate that a source may give


def check_box(value: Any, name: str, expected: str) -> Box:
    """Return a box that a source gives; ValueError if it is none."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise ValueError(f"{name} has {value!r}; {expected}")
    left, top, right, bottom = value
    if left >= right or top >= bottom:
        raise ValueError(f"{name} has {value!r}, which is empty; {expected}")
    return left, top, right, bottom


def clip_boxes(boxes: Sequence[Box], width: int, height: int, name: str) -> tuple[Box, ...]:
    """Clip boxes to the picture, because detectors overshoot at its edges.

    Raises:
        ImageError: a box lies outside the picture.
    """
    clipped = []
    for box in boxes:
        left, top, right, bottom = box
        inside = (max(0, left), max(0, top), min(width, right), min(height, bottom))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise ImageError(f"its {name} {list(box)} lies outside the picture, {width} x {height}")
        clipped.append(inside)
    return tuple(clipped)


def scale_boxes(
    boxes: Sequence[Box], x_scale: float, y_scale: float, left: float = 0, top: float = 0
) -> tuple[Box, ...]:
    """Map boxes to a picture that is scaled and then cropped to start at (`left`, `top`)."""
    return tuple(
        (x0 * x_scale - left, y0 * y_scale - top, x1 * x_scale - left, y1 * y_scale - top)
        for x0, y0, x1, y1 in boxes
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST  # false of what is no number
