"""Characters cut out of their pictures: found by alpha, a mask or a flat ground, and put on white.

All else in a reference picture is copied into what is drawn, so a character is best alone, on white
and large. `ic_jax.matting` finds figures on other grounds.
"""

from typing import Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8
from PIL import Image
from scipy import ndimage

from ic_jax.preprocessing.images import ImageError, Picture, read_rgb, read_rgba

Ground = Literal["keep", "cut"]
MAX_SIDE = 2048  # pixels; larger pictures are made smaller, and the encoders see 768
# A ground is flat if this share of the picture's upper, left and right borders differs from their
# median colour by at most `TOLERANCE` in any channel, of 255. Figures may be cut at the bottom.
FLAT_SHARE = 0.75
TOLERANCE = 24
SPECK = 0.005  # of the figure's largest part; smaller ones are noise
EDGE = 2  # pixels beside the ground that may be mixed with it
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
        figure, alpha = _without_flat_ground(figure)
    return _cropped(figure, alpha > VISIBLE)


def _smaller(image: Image.Image) -> Image.Image:
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def _on_white(
    colours: UInt8[np.ndarray, "h w 3"], alpha: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    return np.round(255 + alpha[..., None] * (colours - 255.0)).astype(np.uint8)


def _without_flat_ground(
    colours: UInt8[np.ndarray, "h w 3"],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Return the figure on white, and its opacity; ImageError if the ground is not flat."""
    border = np.concatenate([colours[0], colours[:, 0], colours[:, -1]])
    ground = np.median(border, axis=0).astype(np.int16)
    share = np.mean(np.abs(border - ground).max(axis=-1) <= TOLERANCE)
    if share < FLAT_SHARE:
        raise ImageError(
            f"the picture's ground is not flat ({share:.0%} of its border is near one colour, and "
            f"{FLAT_SHARE:.0%} must be); give a transparent picture, a mask or a matting network"
        )
    offsets = colours - ground
    is_ground = _without_specks(_flooded(np.abs(offsets).max(axis=-1) <= TOLERANCE))
    alpha = np.where(is_ground, 0.0, 1.0)
    near = ndimage.binary_dilation(is_ground, np.ones((3, 3)), iterations=EDGE)
    edge = np.nonzero(near & ~is_ground)
    alpha[edge] = _opacity_of_edge(offsets, edge)
    whitened = colours + (1 - alpha[..., None]) * (255 - ground)
    whitened[is_ground] = 255
    return np.clip(np.round(whitened), 0, 255).astype(np.uint8), alpha


def _opacity_of_edge(
    offsets: Int16[np.ndarray, "h w 3"], edge: tuple[np.ndarray, ...]
) -> Float[np.ndarray, "e"]:
    """Return the opacity of pixels near the ground, some of which are mixed with it.

    A pixel is mixed if its colour lies between the ground's and that of the neighbour that is the
    farthest from the ground; otherwise it is opaque.

    Args:
        offsets: the picture less the ground's colour.
        edge: rows and columns of the pixels.
    """
    padded = np.pad(offsets, ((EDGE, EDGE), (EDGE, EDGE), (0, 0)), mode="edge").astype(np.float64)
    own, farthest = padded[edge[0] + EDGE, edge[1] + EDGE], np.zeros((len(edge[0]), 3))
    for row, column in np.ndindex(2 * EDGE + 1, 2 * EDGE + 1):
        other = padded[edge[0] + row, edge[1] + column]
        is_farther = np.sum(other**2, axis=-1) > np.sum(farthest**2, axis=-1)
        farthest[is_farther] = other[is_farther]
    part = np.clip(np.sum(own * farthest, axis=-1) / np.sum(farthest**2, axis=-1), 0, 1)
    is_mixed = np.abs(own - part[:, None] * farthest).max(axis=-1) <= TOLERANCE
    return np.where(is_mixed, part, 1.0)


def _without_specks(is_ground: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the ground, with what lies in it and is far smaller than the figure."""
    labels, _ = ndimage.label(~is_ground, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    is_speck = sizes < SPECK * max(sizes[1:], default=0)
    return is_ground | is_speck[labels]


def _flooded(candidates: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels from which a path of candidates leads to the border."""
    labels, _ = ndimage.label(candidates)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, border[border > 0])


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
