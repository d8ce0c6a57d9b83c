"""Aspect-ratio buckets: the target sizes of training, all of about one area, compiled once each."""

import math

import numpy as np

# Height to width. Between two neighbours a picture loses at most a tenth of a side.
RATIOS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)
MULTIPLE = 16  # a FLUX token is 2 x 2 latents of 8 x 8 pixels

Size = tuple[int, int]  # height, width


def buckets(resolution: int) -> list[Size]:
    """Return the sizes of about `resolution` x `resolution` pixels, from wide to tall.

    Raises:
        ValueError: `resolution` is not a positive multiple of 16.
    """
    if resolution < MULTIPLE or resolution % MULTIPLE:
        raise ValueError(f"resolution {resolution} is not a positive multiple of {MULTIPLE}")

    def rounded(side: float) -> int:
        return max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)

    sizes = [
        (rounded(resolution * math.sqrt(r)), rounded(resolution / math.sqrt(r))) for r in RATIOS
    ]
    return list(dict.fromkeys(sizes))  # at small resolutions some round to the same size


def nearest_bucket(widths: np.ndarray, heights: np.ndarray, sizes: list[Size]) -> np.ndarray:
    """Return for each picture the index into `sizes` of the nearest aspect ratio, int16 [n]."""
    ratios = np.log([height / width for height, width in sizes])
    thresholds = (ratios[1:] + ratios[:-1]) / 2
    return np.searchsorted(thresholds, np.log(heights / widths)).astype(np.int16)


def covering_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Return the smallest (width, height) of a picture that covers its bucket; never enlarges.

    Args:
        width: width of the picture in pixels.
        height: height of the picture in pixels.
        resolution: largest resolution that the data set is prepared for.
    """
    sizes = buckets(resolution)
    index = int(nearest_bucket(np.array([width]), np.array([height]), sizes)[0])
    bucket_height, bucket_width = sizes[index]
    scale = max(bucket_width / width, bucket_height / height)
    if scale >= 1:
        return width, height
    return max(bucket_width, round(width * scale)), max(bucket_height, round(height * scale))
