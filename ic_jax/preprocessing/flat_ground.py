"""Characters cut out of a flat ground, which is flooded from the picture's border."""

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8
from scipy import ndimage

from ic_jax.preprocessing.images import ImageError

# A ground is flat if this share of the picture's upper, left and right borders differs from their
# median colour by at most `TOLERANCE` in any channel, of 255. Figures may be cut at the bottom.
FLAT_SHARE = 0.75
TOLERANCE = 24
SPECK = 0.005  # of the figure's largest part; smaller ones are noise
EDGE = 2  # pixels beside the ground that may be mixed with it


def cut(
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
    offset, farthest = padded[edge[0] + EDGE, edge[1] + EDGE], np.zeros((len(edge[0]), 3))
    for row, column in np.ndindex(2 * EDGE + 1, 2 * EDGE + 1):
        other = padded[edge[0] + row, edge[1] + column]
        is_farther = np.sum(other**2, axis=-1) > np.sum(farthest**2, axis=-1)
        farthest[is_farther] = other[is_farther]
    part = np.clip(np.sum(offset * farthest, axis=-1) / np.sum(farthest**2, axis=-1), 0, 1)
    is_mixed = np.abs(offset - part[:, None] * farthest).max(axis=-1) <= TOLERANCE
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
