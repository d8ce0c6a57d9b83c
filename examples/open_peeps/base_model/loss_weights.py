"""Loss weights of pixels, which emphasise the head and the face.

A face covers 1/30 of a bust's picture and 1/160 of a standing figure's. With uniform weights,
models of this size blur it: differences between faces are 0.3% of a bust's error, and less in
other views. So a fixed share of the loss is the mean over the head and the face, whatever their
size in pixels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from examples.open_peeps.world.render import VIEW_BOXES, View, body_kind, focus_boxes
from train.data.focus import density

KINDS = tuple(VIEW_BOXES)


def kind_indices(views: Sequence[View]) -> Int[np.ndarray, "n"]:
    """Return the row of `weights` for each view."""
    return np.array([KINDS.index(body_kind(view.body)) for view in views], np.int32)


def weights(side: int, share: float, cell: int = 1) -> Float[np.ndarray, "k y x"]:
    """Return weights of mean 1 for each kind of view, over cells of `cell` x `cell` pixels.

    Half of `share` lies on the head, half on the face, and the rest evenly on the whole picture.
    """
    boxes_by_kind = (focus_boxes(kind, side) for kind in KINDS)
    return np.stack(
        [1 - share + share * density(boxes, side, side, cell) for boxes in boxes_by_kind]
    )
