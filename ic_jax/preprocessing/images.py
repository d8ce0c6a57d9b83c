"""Picture preprocessing: any common picture to RGB bytes, then to the encoders' squares."""

import os
import warnings
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

# Checked before anything is decoded, since a 12 kB file may claim any size. It is a side and not
# an area because the square of the longer side is allocated: 200 MB here, but for a picture of
# 1 x 60 000 000 pixels more than any memory.
MAX_SIDE = 8192

# Opening a file only tells its format; decoding may run programs: EPS would start Ghostscript.
FORMATS = ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF"]
FORMATS += ["WEBP"]

Fit = Literal["stretch", "pad"]
Picture = str | os.PathLike[str] | Image.Image | np.ndarray | jax.Array


class ImageError(ValueError):
    """A picture that cannot be used: one line with its name, the problem and the remedy."""


def read_rgb(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """Convert a picture of any common kind to RGB bytes, upright, on white if transparent.

    Args:
        picture: a path; a PIL image; or an array, [h, w] or [h, w, c] with c = 1 grey, 2 grey
            and alpha, 3 RGB or 4 RGBA. Of an animated file, the first frame. White is 65535 for
            16-bit values; for other numbers wider than a byte it is 1 (floats only), 255 or
            65535, the smallest that no value exceeds.

    Raises:
        ImageError: not a picture, damaged, or with a side beyond `MAX_SIDE` pixels.
    """
    return np.asarray(_on_white(_read(picture)))


def read_rgba(picture: Picture) -> UInt8[np.ndarray, "h w 4"]:
    """Convert like `read_rgb`, to RGB bytes and alpha; what has no transparency is opaque."""
    return np.asarray(_read(picture).convert("RGBA"))


def _read(picture: Picture) -> Image.Image:
    """Return a picture upright, in a mode that converts to RGB; see `read_rgb`."""
    if isinstance(picture, Image.Image):
        filename = getattr(picture, "filename", "")
        return _decode(picture, repr(filename) if filename else "the picture given")
    if isinstance(picture, np.ndarray | jax.Array):
        return _from_array(np.asarray(picture), "the array given")
    if not isinstance(picture, str | os.PathLike):
        raise ImageError(
            f"a picture cannot be a {type(picture).__name__}; "
            "give a path, a PIL image or an array of shape [h, w, 3]"
        )
    name = repr(os.fspath(picture))
    with _open(Path(picture), name) as image:
        if image.format not in FORMATS:
            raise ImageError(f"{name}: {image.format} is not read; save it as PNG or JPEG")
        return _decode(image, name)


def to_square(picture: UInt8[np.ndarray, "h w 3"], fit: Fit) -> UInt8[np.ndarray, "s s 3"]:
    """Make a picture square, with its longer side as side.

    Args:
        picture: RGB.
        fit: "stretch" loses the aspect ratio, as the published code does; "pad" keeps it and
            adds white on both sides.
    """
    height, width = picture.shape[:2]
    side = max(height, width)
    match fit:
        case "stretch":
            return _resize(picture, side)
        case "pad":
            top, left = (side - height) // 2, (side - width) // 2
            square = np.full((side, side, 3), 255, np.uint8)
            square[top : top + height, left : left + width] = picture
            return square
        case other:
            raise ValueError(f"fit {other!r} is neither 'stretch' nor 'pad'")


def encoder_pixels(square: UInt8[np.ndarray, "s s 3"], size: int) -> UInt8[np.ndarray, "n n 3"]:
    """Return the most that the encoders see of a square: the pixels that `tiles` cuts into four."""
    return _resize(square, 2 * size)


def tiles(
    square: UInt8[np.ndarray, "s s 3"], size: int
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], UInt8[np.ndarray, "4 {size} {size} 3"]]:
    """Resize a square to `size` pixels a side, and to twice that, cut into four tiles.

    Tiles are ordered top left, top right, bottom left, bottom right. The published encoders'
    size is 384.
    """
    high = encoder_pixels(square, size).reshape(2, size, 2, size, 3)  # row y column x c
    return _resize(square, size), high.swapaxes(1, 2).reshape(4, size, size, 3)


def _resize(picture: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(picture)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def _open(path: Path, name: str) -> Image.Image:
    """Open a file and read its header; pixels are not decoded yet."""
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a directory; give one picture file")
        if path.stat().st_size == 0:
            raise ImageError(f"{name} is empty; copy or download it again")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except FileNotFoundError:
        raise ImageError(f"{name}: there is no such file; check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, "too many pixels") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not a picture that can be read; save it as PNG or JPEG"
        ) from None
    except ImageError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # the system's, not a decoder's
            raise ImageError(f"{name} cannot be opened ({error.strerror}); check it") from error
        raise _damaged(name, error) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:
        raise _damaged(name, error) from error
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _narrow(image, name)
    try:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    except ValueError as error:  # some modes, such as premultiplied grey, have no conversion
        raise ImageError(
            f"{name}: colours of mode {image.mode} are not read; save it as RGB"
        ) from error


def _from_array(values: np.ndarray, name: str) -> Image.Image:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (2, 3, 4))):
        raise ImageError(
            f"{name} has shape {list(values.shape)}; expected [h, w] or [h, w, c] with 1 to 4 "
            "channels, one picture at a time"
        )
    _check_size(values.shape[1], values.shape[0], name)
    return Image.fromarray(_to_bytes(values, name))


def _narrow(image: Image.Image, name: str) -> Image.Image:
    """Scale grey wider than a byte to bytes; Pillow's own conversion clips it to white."""
    values = np.asarray(image)
    grey = Image.fromarray(_to_bytes(values, name))
    transparent = image.info.get("transparency")
    if transparent is not None:  # the one grey value that is transparent
        grey.putalpha(Image.fromarray(_to_bytes(values != transparent, name)))
    return grey


def _to_bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Scale numbers of any type to bytes, white to 255, by the rule in `read_rgb`."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        whites: tuple[int, ...] = (65535,)
    else:
        integers = np.issubdtype(values.dtype, np.integer)
        whites = (255, 65535) if integers else (1, 255, 65535)
    numbers = values.astype(np.float64)
    low, high = numbers.min(), numbers.max()
    if not (low >= 0 and high <= 65535):  # or not a number
        raise ImageError(
            f"{name} has values from {low:g} to {high:g}; scale them to 0..1, 0..255 or 0..65535"
        )
    white = next(white for white in whites if high <= white)
    return np.round(numbers * (255 / white)).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB on white, so that colours under transparent pixels stay hidden."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _check_size(width: int, height: int, name: str) -> None:
    if width == 0 or height == 0:
        raise ImageError(f"{name} has no pixels ({width} x {height}); give another picture")
    if max(width, height) > MAX_SIDE:
        raise _too_large(name, f"{width} x {height} pixels")


def _too_large(name: str, what: str) -> ImageError:
    return ImageError(
        f"{name} has {what}, more than {MAX_SIDE} a side; make it smaller "
        "(the models see about a megapixel of it at most)"
    )


def _damaged(name: str, error: Exception) -> ImageError:
    """Return the error for any exception of a decoder; each raises its own kinds."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"{name} is damaged or incomplete ({reason}); copy or download it again")
