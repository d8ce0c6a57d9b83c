"""Picture preprocessing: any common picture to RGB bytes, then to the encoders' squares."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
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

# Bytes that reading one picture may take in the process that reads it, checked before it is decoded
# as well. 45 megapixels of a camera's JPEG take 0.5 GB.
MAX_DECODING = 800_000_000
# Bytes a pixel of Pillow's modes; others have four.
_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "LA": 4}
# Bytes a pixel that decoders hold beside the picture: planes, coefficients, or a copy of it.
_OF_DECODER = {"JPEG2000": 20, "AVIF": 12, "HEIF": 12, "WEBP": 12, "GIF": 8, "ICO": 8}
_OF_PROGRESSIVE = 6  # of a JPEG, whose coefficients are kept until the last scan
_STRIP = 2**18  # pixels that are brought to RGB at a time
_ORIENTATION = 0x0112  # tag of EXIF

# Opening a file only tells its format; decoding may run programs: EPS would start Ghostscript.
FORMATS = ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF"]
FORMATS += ["WEBP"]

Fit = Literal["stretch", "pad"]
Change = Callable[[Image.Image], Image.Image]  # of each pixel by itself
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
    return _read(picture, _on_white)


def read_rgba(picture: Picture) -> UInt8[np.ndarray, "h w 4"]:
    """Convert like `read_rgb`, to RGB bytes and alpha; what has no transparency is opaque."""
    return _read(picture, _with_alpha)


def _read(picture: Picture, change: Change) -> np.ndarray:
    """Return what `change` makes of a picture, upright and in bytes; see `read_rgb`."""
    if isinstance(picture, Image.Image):
        filename = getattr(picture, "filename", "")
        return _decode(picture, repr(filename) if filename else "the picture given", change)
    if isinstance(picture, np.ndarray | jax.Array):
        return _from_array(np.asarray(picture), "the array given", change)
    if not isinstance(picture, str | os.PathLike):
        raise ImageError(
            f"a picture cannot be a {type(picture).__name__}; "
            "give a path, a PIL image or an array of shape [h, w, 3]"
        )
    name = repr(os.fspath(picture))
    with _open(Path(picture), name) as image:
        return _decode(image, name, change)


@cache
def readable_formats() -> list[str]:
    """Return those of `FORMATS` that this Pillow reads; no other decoder sees a file."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def alpha_of(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Return the alpha channel of an image, upright."""
    image = _upright(image)
    return _together(image, _strips(image), lambda x: x.convert("RGBA").getchannel("A"))


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
            return Image.open(path, formats=readable_formats())
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


def _decode(image: Image.Image, name: str, change: Change) -> np.ndarray:
    _check_size(*image.size, name)
    _check_decoding(image, name)
    try:
        image.load()
        image = _upright(image)
    except Exception as error:
        raise _damaged(name, error) from error
    is_wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    white = _white(image, name) if is_wide else 0
    try:
        strips = (_narrow(x, white) if is_wide else x for x in _strips(image))
        return _together(image, strips, change)
    except ValueError as error:  # some modes, such as premultiplied grey, have no conversion
        raise ImageError(
            f"{name}: colours of mode {image.mode} are not read; save it as RGB"
        ) from error


def _from_array(values: np.ndarray, name: str, change: Change) -> np.ndarray:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (2, 3, 4))):
        raise ImageError(
            f"{name} has shape {list(values.shape)}; expected [h, w] or [h, w, c] with 1 to 4 "
            "channels, one picture at a time"
        )
    _check_size(values.shape[1], values.shape[0], name)
    if values.dtype != np.uint8:
        numbers = values.astype(np.float64)
        values = _to_bytes(values, _white_of(values.dtype, numbers.min(), numbers.max(), name))
    image = Image.fromarray(values)
    return _together(image, _strips(image), change)


def _upright(image: Image.Image) -> Image.Image:
    """Return the image as EXIF says it is to be shown; itself where that changes nothing."""
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the image in strips: what becomes of a pixel does not depend on others."""
    width, height = image.size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height)))


def _together(image: Image.Image, strips: Iterable[Image.Image], change: Change) -> np.ndarray:
    """Return the changed strips of an image as one array."""
    whole, top = np.empty(0), 0
    for strip in strips:
        part = np.asarray(change(strip))
        if not top:
            whole = np.empty((image.height, *part.shape[1:]), np.uint8)
        whole[top : (top := top + len(part))] = part
    return whole


def _narrow(strip: Image.Image, white: int) -> Image.Image:
    """Scale grey wider than a byte to bytes; Pillow's own conversion clips it to white."""
    values = np.asarray(strip)
    grey = Image.fromarray(_to_bytes(values, white))
    transparent = strip.info.get("transparency")
    if transparent is not None:  # the one grey value that is transparent
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _white(image: Image.Image, name: str) -> int:
    """Return which of an image's values is white."""
    bounds = np.array([(x.min(), x.max()) for x in map(np.asarray, _strips(image))], np.float64)
    dtype = np.asarray(image.crop((0, 0, 1, 1))).dtype
    return _white_of(dtype, bounds[:, 0].min(), bounds[:, 1].max(), name)


def _white_of(dtype: np.dtype, low: float, high: float, name: str) -> int:
    """Return which value of numbers from `low` to `high` is white, by the rule in `read_rgb`."""
    if not (low >= 0 and high <= 65535):  # or not a number
        raise ImageError(
            f"{name} has values from {low:g} to {high:g}; scale them to 0..1, 0..255 or 0..65535"
        )
    if dtype.kind == "u" and dtype.itemsize == 2:
        return 65535
    whites = (255, 65535) if np.issubdtype(dtype, np.integer) else (1, 255, 65535)
    return next(white for white in whites if high <= white)


def _to_bytes(values: np.ndarray, white: int) -> np.ndarray:
    return np.round(values.astype(np.float64) * (255 / white)).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB on white, so that colours under transparent pixels stay hidden."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA" if image.has_transparency_data else "RGB").convert("RGBA")


def _check_size(width: int, height: int, name: str) -> None:
    if width == 0 or height == 0:
        raise ImageError(f"{name} has no pixels ({width} x {height}); give another picture")
    if max(width, height) > MAX_SIDE:
        raise _too_large(name, f"{width} x {height} pixels")


def _check_decoding(image: Image.Image, name: str) -> None:
    """Raise ImageError if reading the picture would take more than `MAX_DECODING` bytes."""
    decoder = _OF_DECODER.get(image.format or "", 0)
    if image.info.get("progressive"):
        decoder += _OF_PROGRESSIVE
    # The picture, a copy that is turned upright, and the result.
    need = image.width * image.height * (2 * _OF_MODE.get(image.mode, 4) + decoder + 4)
    if need > MAX_DECODING:
        raise ImageError(
            f"{name} takes {need / 1e6:.0f} MB to decode ({image.width} x {image.height} pixels), "
            f"more than {MAX_DECODING / 1e6:.0f}; make it smaller"
        )


def _too_large(name: str, what: str) -> ImageError:
    return ImageError(
        f"{name} has {what}, more than {MAX_SIDE} a side; make it smaller "
        "(the models see about a megapixel of it at most)"
    )


def _damaged(name: str, error: Exception) -> ImageError:
    """Return the error for any exception of a decoder; each raises its own kinds."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"{name} is damaged or incomplete ({reason}); copy or download it again")
