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

    pixels: UInt8[np.ndarray, "n h w 3"]
    identities: list[Identity]  # of several people side by side the first
    views: list[View]
    alike: list[bool]  # whether a caption may tell the identity: nobody else is shown


def render_views(
    world: str, count: int, side: int, seed: int, workers: int | None = None
) -> Renders:
    """Render `count` random views of people; the same seed gives the same pictures."""
    function = partial(_picture, side=side)
    return _render(function, world, WORLDS[world].view, count, (seed, 1), workers)


def render_rows(world: str, count: int, side: int, seed: int, people: int) -> Renders:
    """Render `count` rows of people in one random view each: a square of `side` for each person.

    A quarter of the rows show one person several times, whose identity a caption can tell.
    """
    rng = np.random.default_rng((seed, 3))
    views = [WORLDS[world].view(rng) for _ in range(count)]
    everyone = list(islice(WORLDS[world].people(seed), count))
    members = [rng.choice(count, 1 if n % 4 == 0 else people) for n in range(count)]
    shown = [[everyone[n] for n in np.resize(numbers, people)] for numbers in members]
    squares = parallel_map(
        partial(_picture, side=side),
        [identity for row in shown for identity in row],
        [view for view in views for _ in range(people)],
    )
    pixels = np.stack(list(squares)).reshape(count, people, side, side, 3)
    rows = pixels.swapaxes(1, 2).reshape(count, side, people * side, 3)
    alike = [len(set(row)) == 1 for row in shown]
    return Renders(rows, [row[0] for row in shown], views, alike)


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
    return Renders(pixels, identities, views, [True] * len(views))


def _picture(identity: Identity, view: View, *, side: int) -> np.ndarray:
    return picture(identity, view, side)


def _reference_crops(identity: Identity, view: View, *, side: int) -> np.ndarray:
    from train.data.pictures import Augment, MaskedPicture, prepare_reference  # needs an extra

    pixels = render(identity, view, 2 * side)  # a tile of `side` pixels sees twice the detail
    shown = MaskedPicture(over(pixels, "#ffffff"), pixels[..., 3])
    rng = np.random.default_rng(list(f"{identity} {view}".encode()))
    low, high, _ = prepare_reference(shown, side, Augment(flip=0), rng)
    return np.concatenate([low[None], high])
