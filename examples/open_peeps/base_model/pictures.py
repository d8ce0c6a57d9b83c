"""Pictures of a world, drawn once into memory."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from examples.open_peeps.world.render import Identity, View, over, picture, render
from examples.open_peeps.world.worlds import WORLDS
from train.data.pictures import Augment, MaskedPicture, prepare_reference
from train.workers import mapped


class Drawn(NamedTuple):
    """Pictures and what they show; nobody in them is held out."""

    pixels: UInt8[np.ndarray, "n h h 3"]
    identities: list[Identity]
    views: list[View]


def draw(world: str, count: int, side: int, seed: int, workers: int | None = None) -> Drawn:
    """`count` random views of people; the same for the same seed."""
    one = partial(_picture, side=side)
    return _drawn(one, world, WORLDS[world].view, count, (seed, 1), workers)


def draw_subjects(
    world: str, count: int, side: int, seed: int, workers: int | None = None
) -> Drawn:
    """References as an adapter's image encoders are shown them: `pixels` are [n, 5, side, side, 3],
    the whole and its four tiles (`train.data.pictures.prepare_reference`)."""
    one = partial(_subject, side=side)
    return _drawn(one, world, WORLDS[world].reference, count, (seed, 2), workers)


def _drawn(
    one: Callable[..., np.ndarray],
    world: str,
    view: Callable[[np.random.Generator], View],
    count: int,
    seed: tuple[int, int],
    workers: int | None,
) -> Drawn:
    rng = np.random.default_rng(seed)
    identities = list(islice(WORLDS[world].people(seed[0]), count))
    views = [view(rng) for _ in identities]
    return Drawn(np.stack(list(mapped(one, identities, views, workers=workers))), identities, views)


def _picture(identity: Identity, view: View, *, side: int) -> np.ndarray:
    return picture(identity, view, side)


def _subject(identity: Identity, view: View, *, side: int) -> np.ndarray:
    pixels = render(identity, view, 2 * side)  # four tiles of `side` see twice as much
    shown = MaskedPicture(over(pixels, "#ffffff"), pixels[..., 3])
    rng = np.random.default_rng(list(f"{identity} {view}".encode()))
    low, high, _ = prepare_reference(shown, side, Augment(flip=0), rng)
    return np.concatenate([low[None], high])
