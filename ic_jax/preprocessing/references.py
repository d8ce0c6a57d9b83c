"""Reference picture preprocessing: RGB bytes of a size that FLUX.1 Kontext was trained with.

Source: diffusers `FluxKontextPipeline`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ic_jax.preprocessing.images import ImageError, Picture, read_rgb

_UPRIGHT = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392)),
    *((800, 1328), (832, 1248), (880, 1184), (944, 1104)),
)
# Width and height in pixels, from narrow to wide; all have about a megapixel.
SIZES = (*_UPRIGHT, (1024, 1024), *((w, h) for h, w in reversed(_UPRIGHT)))


def nearest_size(width: int, height: int) -> tuple[int, int]:
    """Return the size among `SIZES` of the nearest aspect ratio; of two equally near, the narrower.

    Args:
        width: of a picture, in any unit.
        height: in the same unit.
    """
    return min(SIZES, key=lambda size: abs(width / height - size[0] / size[1]))


def to_references(
    pictures: Sequence[Picture], multiple: int, *, resize: bool = True
) -> UInt8[np.ndarray, "r h w 3"]:
    """Read pictures and bring them to one size, that of the first, by Lanczos resampling.

    Args:
        pictures: as `read_rgb` takes them.
        multiple: pixels of a token, of which both sides become multiples.
        resize: whether to the nearest of `SIZES`; otherwise the first keeps its sides, rounded
            down to multiples.

    Raises:
        ImageError: a picture that cannot be read, or one with a side of less than a token.
    """
    read = [read_rgb(picture) for picture in pictures]
    height, width = (side // multiple * multiple for side in read[0].shape[:2])
    if not (height and width):
        raise ImageError(
            f"a reference picture has {read[0].shape[1]} x {read[0].shape[0]} pixels; give one of "
            f"at least {multiple} x {multiple}"
        )
    if resize:
        width, height = (s // multiple * multiple for s in nearest_size(width, height))
    resampling = Image.Resampling.LANCZOS
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((width, height), resampling)) for x in read]
    )
