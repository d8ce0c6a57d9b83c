"""What counts in a picture of a person: beside the whole, the head and the face.

A face is a 30th of a bust's picture and a 160th of a standing figure's. With every pixel alike,
models of this size leave it blurred: what faces differ in is 0.3% of a bust's error and less of
others'. So a share of the loss is the head's and the face's mean, however small they are drawn.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from train.peeps.render import FACE_BOX, HEAD_BOX, VIEW_BOXES, View, body_kind, pixel_box

KINDS = tuple(VIEW_BOXES)


def kinds_of(views: Sequence[View]) -> Int[np.ndarray, "n"]:
    """Which of `weights` is each view's."""
    return np.array([KINDS.index(body_kind(view.body)) for view in views], np.int32)


def weights(side: int, share: float) -> Float[np.ndarray, "k {side} {side}"]:
    """Of pixels, for each kind of view, with mean 1: half of `share` lies on the head, half on the
    face, the rest on everything alike."""
    found = np.full((len(KINDS), side, side), 1 - share, np.float32)
    for one, kind in zip(found, KINDS, strict=True):
        for box in (HEAD_BOX, FACE_BOX):
            left, top, right, bottom = pixel_box(box, kind, side)
            area = (right - left) * (bottom - top)
            one[top:bottom, left:right] += share / 2 * side**2 / area
    return found


def pooled(weights: Float[np.ndarray, "k h h"], patch: int) -> Float[np.ndarray, "k y y"]:
    """The same for squares of pixels, such as those of a latent."""
    k, side, _ = weights.shape
    return weights.reshape(k, side // patch, patch, side // patch, patch).mean((2, 4))
