"""Shapes that targets are cut to: one compiled step each, all of about one area."""

import math

import numpy as np

# Height to width. Between two neighbours a picture loses at most a tenth of a side.
RATIOS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)
MULTIPLE = 16  # a FLUX token is 2 x 2 latents of 8 x 8 pixels

Size = tuple[int, int]  # height, width


def buckets(resolution: int) -> list[Size]:
    """Shapes of about resolution x resolution pixels, from wide to tall.

    Raises:
        ValueError: a resolution that is no positive multiple of 16.
    """
    if resolution < MULTIPLE or resolution % MULTIPLE:
        raise ValueError(f"resolution {resolution} is not a positive multiple of {MULTIPLE}")

    def near(side: float) -> int:
        return max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)

    sizes = [(near(resolution * math.sqrt(r)), near(resolution / math.sqrt(r))) for r in RATIOS]
    return list(dict.fromkeys(sizes))  # small resolutions round some to the same


def nearest(widths: np.ndarray, heights: np.ndarray, sizes: list[Size]) -> np.ndarray:
    """The bucket of the nearest aspect ratio for every picture: numbers in `sizes`, int16 [n]."""
    own = np.log([height / width for height, width in sizes])
    between = (own[1:] + own[:-1]) / 2
    return np.searchsorted(between, np.log(heights / widths)).astype(np.int16)


def covering(width: int, height: int, resolution: int) -> Size:
    """(width, height) of the smallest version that still covers its bucket; never larger.

    Args:
        width: of the picture, pixels.
        height: of the picture.
        resolution: the largest that the data set is prepared for.
    """
    sizes = buckets(resolution)
    tall, wide = sizes[int(nearest(np.array([width]), np.array([height]), sizes)[0])]
    scale = max(wide / width, tall / height)
    if scale >= 1:
        return width, height
    return max(wide, round(width * scale)), max(tall, round(height * scale))
