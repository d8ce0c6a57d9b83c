"""Boxes of the characters, drawn on the page by two of their corners, and the picture of them."""

from collections.abc import Sequence
from contextlib import suppress

from PIL import Image, ImageDraw

from ic_jax.preprocessing.regions import box_of
from infer.app.form import ANYWHERE, region_of

SIDE = 224  # pixels of the longer side
LEAST = 0.02  # of a side: two corners that are nearer make no box, and one as near an edge is on it
COLORS = ((209, 73, 91), (46, 134, 171), (91, 142, 62))  # of the characters
GROUND, DOT = (255, 255, 255), 3

Corner = tuple[float, float]  # from the left and from the top, as shares of the sides


def canvas_size(width: int, height: int) -> tuple[int, int]:
    """Return width and height of the canvas for a picture of this size, in pixels."""
    scale = SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def canvas(
    places: Sequence[str], number: int, width: int, height: int, corner: Corner | None = None
) -> Image.Image:
    """Draw where the characters stand; the box of character `number` is filled.

    Args:
        places: of all characters; those that stand anywhere, or that cannot be read, have no box.
        number: of the character whose canvas this is, from 0.
        width: of the picture in pixels; likewise `height`.
        height: see `width`.
        corner: the one that was clicked first, if the box waits for its second.
    """
    size = canvas_size(width, height)
    picture = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=(200, 200, 200))
    for i in sorted(range(len(places)), key=lambda i: i != number):  # the filled box below
        with suppress(ValueError):  # a box that is still being written
            region = region_of(places[i] or ANYWHERE)
            if region is not None:
                left, top, right, bottom = (
                    x * (side - 1) for x, side in zip(box_of(region), 2 * size, strict=True)
                )
                fill = (*COLORS[i], 90 if i == number else 0)
                draw.rectangle((left, top, right, bottom), fill, outline=COLORS[i], width=2)
    if corner is not None:
        x, y = (share * side for share, side in zip(corner, size, strict=True))
        draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=COLORS[number])
    return picture


def box_between(first: Corner, second: Corner) -> str | None:
    """Return the place between two opposite corners, as `Form.places` has it.

    None if they are so near that the second must be a first one again.
    """
    (left, right), (top, bottom) = (sorted(pair) for pair in zip(first, second, strict=True))
    if right - left <= LEAST or bottom - top <= LEAST:
        return None
    sides = (left, top, right, bottom)
    return ",".join(f"{round(x, 2) if LEAST < x < 1 - LEAST else round(x):g}" for x in sides)
