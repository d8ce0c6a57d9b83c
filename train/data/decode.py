"""From an image file's bytes to pixels, and where the character is in them."""

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ic_jax.preprocessing.images import FORMATS, ImageError, read_rgb

# Modes that hold 8 bits a channel: kept as they are; what else a file holds is re-encoded.
MODES = frozenset({"L", "LA", "P", "RGB", "RGBA"})


def decode_image(
    data: bytes,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]:
    """The picture upright on white, and its alpha channel if it has one.

    Raises:
        ImageError: not a picture, damaged, or too large (`ic_jax.preprocessing.images.read_rgb`).
    """
    with _open(data) as image:
        rgb = read_rgb(image)
        if not image.has_transparency_data or image.mode not in MODES:
            return rgb, None
        upright = ImageOps.exif_transpose(image)
        return rgb, np.asarray(upright.convert("RGBA").getchannel("A"))


def decode_mask(data: bytes) -> UInt8[np.ndarray, "h w"]:
    """A mask as a PNG of grey values, or in the alpha channel, 255 where the character is.

    Raises:
        ImageError: as `decode_image`.
    """
    rgb, alpha = decode_image(data)
    return rgb[:, :, 0] if alpha is None else alpha


def kept_as_is(data: bytes) -> tuple[bool, bool]:
    """(whether the file can be stored unchanged, whether it is a JPEG)."""
    with _open(data) as image:
        simple = image.format in ("JPEG", "PNG", "WEBP") and image.mode in MODES
        return simple and getattr(image, "n_frames", 1) == 1, image.format in ("JPEG", "MPO")


def encode_jpeg(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """At a quality that adds nothing visible, with colour at full resolution."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """RGB [h, w, 3] or grey [h, w]."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """RGB or grey at another size; what is made smaller is filtered first."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("has too many pixels; make it smaller") from None
    except Exception as error:  # each format's reader raises errors of its own kind
        raise ImageError(f"is not a picture that can be read ({type(error).__name__})") from error
    if image.format not in FORMATS:
        raise ImageError(f"is of format {image.format}, which is not read; save it as PNG or JPEG")
    return image
