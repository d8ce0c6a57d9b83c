"""What counts in a picture of a person: beside the whole, the head and the face.

A face is a 30th of a bust's picture and a 160th of a standing figure's. With every pixel alike,
models of this size leave it blurred: what faces differ in is 0.3% of a bust's error and less of
others'. So a share of the loss is the head's and the face's mean, however small they are drawn.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from examples.open_peeps.world.render import VIEW_BOXES, View, body_kind, focus_boxes
from train.data.focus import density

KINDS = tuple(VIEW_BOXES)


def kinds_of(views: Sequence[View]) -> Int[np.ndarray, "n"]:
    """Which of `weights` is each view's."""
    return np.array([KINDS.index(body_kind(view.body)) for view in views], np.int32)


def weights(side: int, share: float, cell: int = 1) -> Float[np.ndarray, "k y x"]:
    """Of cells of pixels, for each kind of view, with mean 1: half of `share` lies on the head,
    half on the face, the rest on everything alike."""
    boxes = (focus_boxes(kind, side) for kind in KINDS)
    return np.stack([1 - share + share * density(one, side, side, cell) for one in boxes])
