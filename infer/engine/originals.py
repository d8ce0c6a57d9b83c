"""Pictures that requests draw over."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import UInt8

from ic_jax import InstantCharacterPipeline, flow
from ic_jax.preprocessing.images import ImageError, Picture, read_rgb
from ic_jax.preprocessing.originals import Originals, read_mask
from infer.engine.characters import decode

MAX_PIXELS = 2 * 1024**2  # of a drawn picture; FLUX was trained up to about as many


@dataclass(frozen=True, eq=False)
class Original:
    """A picture to draw over, at the size that is drawn.

    Waiting requests hold no more than they need: of 25 million pixels that may be sent, 2 remain.

    Attributes:
        image: RGB.
        mask_image: grey, bright where it is drawn anew; None draws over all.
        sha256: of the picture's bytes, in hexadecimal.
        mask_sha256: likewise.
    """

    image: UInt8[np.ndarray, "h w 3"]
    mask_image: UInt8[np.ndarray, "h w"] | None
    sha256: str
    mask_sha256: str | None

    @classmethod
    def read(
        cls,
        pipe: InstantCharacterPipeline,
        data: bytes,
        mask: bytes | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Self:
        """Decode the files of a picture and its mask, and resize them as the pipeline would.

        Args:
            pipe: the one to draw with.
            data: the picture's bytes.
            mask: likewise, see `read_mask`.
            height: in pixels; None follows from the picture.
            width: likewise.

        Raises:
            ImageError: no pictures, damaged or too large; begins with "original:" or "mask:".
            ValueError: too large a picture would be drawn.
        """
        picture = _decoded("original", data, read_rgb)
        masks = None if mask is None else [_decoded("mask", mask, read_mask)]
        originals = Originals([picture], masks)
        area = pipe.sampling.height * pipe.sampling.width
        size = originals.size(height, width, area, pipe.vae.config.downscale * flow.PATCH)
        check_pixels(*size)
        (image,), grey = originals.at_size(*size)
        mask_image = None if grey is None else grey[0]
        return cls(image, mask_image, _sha256(data), None if mask is None else _sha256(mask))


def check_pixels(height: int, width: int) -> None:
    """Raise ValueError for a picture that is too large to be drawn."""
    if (pixels := height * width) > MAX_PIXELS:
        raise ValueError(f"a picture of {pixels} pixels is too large; at most {MAX_PIXELS}")


def _decoded(name: str, data: bytes, read: Callable[[Picture], np.ndarray]) -> np.ndarray:
    try:
        return decode(data, read)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
