"""Characters cut out of their pictures: found by alpha, a mask or a flat ground, and put on white.

All else in a reference picture is copied into what is drawn, so a character is best alone, on white
and large. `ic_jax.matting` finds figures on other grounds.
"""

from typing import Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from ic_jax.preprocessing.images import ImageError, Picture, read_rgb, read_rgba

Ground = Literal["keep", "cut"]
MAX_SIDE = 2048  # pixels; larger pictures are made smaller, and the encoders see 768
MARGIN = 0.05  # of white around the figure, as a share of its longer side
VISIBLE = 0.1  # opacity from which a pixel counts as the figure's when it is cropped


class Matting(Protocol):
    """A network that finds figures."""

    def __call__(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """Return the opacity of the figure, 0..1."""


def prepare_subject(
    image: Picture, *, mask: Picture | None = None, matting: Matting | None = None
) -> Image.Image:
    """Cut a character out, crop to it, and put it on a white square, for `subject_image`.

    What the character is follows from the first of these that there is: `mask` or `matting`;
    transparency of the picture; a flat ground, which is flooded from the picture's border, so that
    what the character encloses stays. A ground is flat if three quarters of the upper, left and
    right borders are within 24 of 255 of their median colour. Specks in it go as well.

    Args:
        image: as `read_rgb` takes it.
        mask: white where the character is; resized to the picture.
        matting: such as `ic_jax.matting.OnnxMatting`.

    Returns:
        RGB, with at most 2048 pixels of the character along a side.

    Raises:
        ImageError: a picture that cannot be read, that has no character left, or whose ground is
            not flat where nothing else tells.
        ValueError: both a mask and a network.
    """
    if mask is not None and matting is not None:
        raise ValueError("a mask and a matting network exclude each other; give one")
    rgba = _smaller(Image.fromarray(read_rgba(image)))
    alpha = np.asarray(rgba.getchannel("A")) / 255
    figure = _on_white(np.asarray(rgba.convert("RGB")), alpha)
    if mask is not None:
        grey = Image.fromarray(read_rgb(mask)).convert("L").resize(rgba.size)
        alpha = np.asarray(grey) / 255
        figure = _on_white(figure, alpha)
    elif matting is not None:
        alpha = matting(figure)
        figure = _on_white(figure, alpha)
    elif alpha.min() > 1 - VISIBLE:
        from ic_jax.preprocessing.flat_ground import cut  # imports scipy, a quarter of a second

        figure, alpha = cut(figure)
    return _cropped(figure, alpha > VISIBLE)


def _smaller(image: Image.Image) -> Image.Image:
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def _on_white(
    colours: UInt8[np.ndarray, "h w 3"], alpha: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    return np.round(255 + alpha[..., None] * (colours - 255.0)).astype(np.uint8)


def _cropped(
    figure: UInt8[np.ndarray, "h w 3"], is_visible: Bool[np.ndarray, "h w"]
) -> Image.Image:
    """Return the visible part in the middle of a white square, with a margin."""
    if not is_visible.any():
        raise ImageError("nothing of the picture is left when its ground is cut; give another one")
    rows, columns = (np.flatnonzero(is_visible.any(axis=axis)) for axis in (1, 0))
    part = figure[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = part.shape[:2]
    side = max(height, width) + 2 * round(MARGIN * max(height, width))
    square = Image.new("RGB", (side, side), "white")
    square.paste(Image.fromarray(part), ((side - width) // 2, (side - height) // 2))
    return square
