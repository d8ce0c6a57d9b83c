"""Decoding, encoding and resizing of image files held in memory."""

import io
import warnings
from contextlib import suppress
from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from ic_jax.preprocessing.images import ImageError, alpha_of, read_rgb, readable_formats

# Pillow modes of 8 bits per channel, stored unchanged; every other mode is re-encoded.
MODES = frozenset({"L", "LA", "P", "RGB", "RGBA"})
# Brands of the HEIF files that phones write, in bytes 8 to 11.
HEIC = frozenset({b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"})
FIGURE = 128  # of 255: mask values from here on count as the character


def decode_image(
    data: bytes,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]:
    """Decode a picture, upright and on white, and its alpha channel (None if it has none).

    Raises:
        ImageError: the data is no picture, damaged or too large
            (`ic_jax.preprocessing.images.read_rgb`).
    """
    with _open(data) as image:
        rgb = read_rgb(image)
        if not image.has_transparency_data or image.mode not in MODES:
            return rgb, None
        return rgb, alpha_of(image)


def decode_mask(data: bytes) -> UInt8[np.ndarray, "h w"]:
    """Decode a mask, 255 where the character is: the alpha channel, or else the grey values.

    Raises:
        ImageError: as `decode_image`.
    """
    rgb, alpha = decode_image(data)
    return rgb[:, :, 0] if alpha is None else alpha


def inspect_file(data: bytes) -> tuple[bool, bool]:
    """Return whether the file can be stored unchanged, and whether it is a JPEG."""
    with _open(data) as image:
        simple = image.format in ("JPEG", "PNG", "WEBP") and image.mode in MODES
        return simple and getattr(image, "n_frames", 1) == 1, image.format in ("JPEG", "MPO")


def encode_jpeg(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode as JPEG without visible loss, with colour at full resolution."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode RGB [h, w, 3] or grey [h, w] as PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize RGB or grey with Pillow's bicubic filter, which antialiases when it shrinks."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("has too many pixels; make it smaller") from None
    except Exception as error:  # each format's decoder has its own error types
        raise ImageError(_unread(data, error)) from error


@cache
def _formats() -> list[str]:
    """Return the formats that are read here; no other decoder sees a file."""
    formats = readable_formats()
    with suppress(ModuleNotFoundError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        return [*formats, "HEIF"]
    return formats


def _unread(data: bytes, error: Exception) -> str:
    """Return why a file is no picture here, with the remedy where a decoder is missing."""
    kind = data[8:12] if data[4:8] == b"ftyp" else b""
    if kind in HEIC and "HEIF" not in _formats():
        return "is HEIC; pip install -e '.[heic]' in the checkout to read it, or save it as JPEG"
    if kind in (b"avif", b"avis") and not features.check("avif"):
        return "is AVIF, which this Pillow does not read; pip install -U pillow, or save it as JPEG"
    return f"is not a picture that can be read ({type(error).__name__})"
