"""Renders of a world, held in memory for training."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from examples.open_peeps.world.render import Identity, View, over, picture, render
from examples.open_peeps.world.worlds import WORLDS
from train.workers import parallel_map


class Renders(NamedTuple):
    """Pictures with the people and views that they show; none of the people is held out."""

    pixels: UInt8[np.ndarray, "n h h 3"]
    identities: list[Identity]
    views: list[View]


def render_views(
    world: str, count: int, side: int, seed: int, workers: int | None = None
) -> Renders:
    """Render `count` random views of people; the same seed gives the same pictures."""
    function = partial(_picture, side=side)
    return _render(function, world, WORLDS[world].view, count, (seed, 1), workers)


def render_references(
    world: str, count: int, side: int, seed: int, workers: int | None = None
) -> Renders:
    """Render references in the five crops that the image encoders of an adapter see.

    `pixels` are [n, 5, side, side, 3]: the whole reference and its four tiles
    (`train.data.pictures.prepare_reference`).
    """
    function = partial(_reference_crops, side=side)
    return _render(function, world, WORLDS[world].reference, count, (seed, 2), workers)


def _render(
    function: Callable[..., np.ndarray],
    world: str,
    view: Callable[[np.random.Generator], View],
    count: int,
    seed: tuple[int, int],
    workers: int | None,
) -> Renders:
    rng = np.random.default_rng(seed)
    identities = list(islice(WORLDS[world].people(seed[0]), count))
    views = [view(rng) for _ in identities]
    pixels = np.stack(list(parallel_map(function, identities, views, workers=workers)))
    return Renders(pixels, identities, views)


def _picture(identity: Identity, view: View, *, side: int) -> np.ndarray:
    return picture(identity, view, side)


def _reference_crops(identity: Identity, view: View, *, side: int) -> np.ndarray:
    from train.data.pictures import Augment, MaskedPicture, prepare_reference  # needs an extra

    pixels = render(identity, view, 2 * side)  # a tile of `side` pixels sees twice the detail
    shown = MaskedPicture(over(pixels, "#ffffff"), pixels[..., 3])
    rng = np.random.default_rng(list(f"{identity} {view}".encode()))
    low, high, _ = prepare_reference(shown, side, Augment(flip=0), rng)
    return np.concatenate([low[None], high])
