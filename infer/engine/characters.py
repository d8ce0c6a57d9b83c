"""Characters under the SHA-256 of their pictures' bytes, each encoded once."""

import hashlib
import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Self

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from ic_jax.models.features import SubjectFeatures
from ic_jax.preprocessing.images import FORMATS, Fit, ImageError, Picture, read_rgb

MAX_BYTES = 20 * 1024**2  # of a picture's file
MAX_PIXELS = 25_000_000  # a 300 kB file may claim any number


class UnknownCharacterError(ValueError):
    """A hash under which no character is kept (any more)."""


class Character:
    """A character's picture, and its encodings once the pipeline has made them.

    Attributes:
        sha256: of the picture's bytes, in hexadecimal.
        data: the picture's bytes.
    """

    def __init__(self, data: bytes):
        """Check the picture.

        Raises:
            ImageError: it is no picture, damaged or too large.
        """
        self.sha256, self.data = hashlib.sha256(data).hexdigest(), data
        self._features: dict[Fit, SubjectFeatures] = {}
        decode(data)

    @classmethod
    def blank(cls) -> Self:
        """Return a white picture, to compile with."""
        file = io.BytesIO()
        Image.new("RGB", (16, 16), "white").save(file, "PNG")
        return cls(file.getvalue())

    def features(self, encode: Callable[..., SubjectFeatures], fit: Fit) -> SubjectFeatures:
        """Return the encoding; the first time it is made with the pipeline's `encode_subject`.

        One thread may call it, that which draws.
        """
        if fit not in self._features:
            self._features[fit] = jax.block_until_ready(encode(decode(self.data), fit))
        return self._features[fit]


class Characters:
    """The characters that were used last, by hash; any thread may call it."""

    def __init__(self, limit: int):
        """Keep at most `limit` characters. An encoding for FLUX.1-dev takes 31 MB of the device."""
        self._limit, self._lock = limit, threading.Lock()
        self._kept: OrderedDict[str, Character] = OrderedDict()

    def add(self, data: bytes) -> Character:
        """Return the character of a picture's bytes, which is kept from now on.

        Raises:
            ImageError: not a picture, damaged or too large.
        """
        try:
            return self.get(hashlib.sha256(data).hexdigest())
        except UnknownCharacterError:
            character = Character(data)
        with self._lock:
            self._kept[character.sha256] = character
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return character

    def get(self, sha256: str) -> Character:
        """Return a character that is kept; UnknownCharacterError if it is not."""
        with self._lock:
            if sha256 not in self._kept:
                raise UnknownCharacterError(
                    f"no character is kept under {sha256!r}; send its picture (again)"
                )
            self._kept.move_to_end(sha256)
            return self._kept[sha256]

    def __len__(self) -> int:
        return len(self._kept)


def decode(
    data: bytes, read: Callable[[Picture], UInt8[np.ndarray, "h w 3"]] = read_rgb
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture of a stranger; its size is looked at before its pixels.

    Args:
        data: of the file.
        read: makes pixels of the opened picture.

    Raises:
        ImageError: not a picture, damaged or too large.
    """
    if len(data) > MAX_BYTES:
        raise ImageError(f"the picture has {len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        message = "the bytes are no picture that can be read; send a PNG, JPEG or WebP"
        raise ImageError(message) from None
    except Exception as error:  # of decoders, each of which raises its own kinds
        raise ImageError(f"the picture cannot be read ({error}); save it as PNG or JPEG") from None
    with image:
        if (pixels := image.width * image.height) > MAX_PIXELS:
            raise ImageError(f"the picture has {pixels} pixels; at most {MAX_PIXELS} are read")
        return read(image)


@cache
def _formats() -> list[str]:
    """Return those of `FORMATS` that this Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
