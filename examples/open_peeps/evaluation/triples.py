"""What is asked of a model: held-out people, each in a picture and in another view to draw."""

from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from examples.open_peeps.world.render import Identity, View, over, render
from examples.open_peeps.world.worlds import WORLDS, World

SIDE = 128  # pixels of a reference's longer side at least; encoders see it in tiles, too
CANDIDATES = 50  # of the identity question; chance is 2%
ORDER = 12  # seed of who is asked for, and as what
POOL = 1000  # people that triples and candidates are taken from


class Triple(NamedTuple):
    """A person, a picture of them, and what to draw them as."""

    identity: Identity
    seen: View  # in the reference
    view: View  # asked for
    prompt: str  # says `view`, and nothing of who it is
    full: str  # says both
    reference: UInt8[np.ndarray, "h w 3"]  # cut out onto white, as in training
    others: tuple[Identity, ...]  # with `identity`, the candidates of who it is


def triples(world: str, people: str, count: int, first: int = 0) -> list[Triple]:
    """`count` of them; the nth is the same for every model and every count, and no body is both
    seen and asked for.

    Args:
        world: of `examples.open_peeps.world.worlds`.
        people: of that world's `held_out`.
        first: leaves so many out at the beginning.

    Raises:
        ValueError: there are fewer people.
    """
    everyone = list(islice(WORLDS[world].held_out[people](ORDER), POOL))
    if len(everyone) < first + count:
        raise ValueError(
            f"{count} triples were asked for, after {first}; {world} has {len(everyone)} people "
            f"that are {people}: ask for at most {len(everyone) - first}"
        )
    return [_triple(WORLDS[world], everyone, n) for n in range(first, first + count)]


def _triple(world: World, everyone: list[Identity], n: int) -> Triple:
    rng, one = np.random.default_rng((n, ORDER)), everyone[n]
    seen, view = world.reference(rng), world.view(rng)
    while view.body == seen.body:
        view = world.view(rng)
    prompt, full = world.caption(view, None, rng), world.caption(view, one, rng)
    others = [everyone[k] for k in rng.permutation(len(everyone)) if k != n]
    return Triple(
        one, seen, view, prompt, full, cut_out(one, seen), tuple(others[: CANDIDATES - 1])
    )


def cut_out(identity: Identity, view: View) -> UInt8[np.ndarray, "h w 3"]:
    """The figure on white, cropped to it, as `train.data.pictures.prepare_reference` does."""
    pixels = render(identity, view, 2 * SIDE)
    figure = pixels[..., 3] >= 128
    rows, columns = np.flatnonzero(figure.any(1)), np.flatnonzero(figure.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return over(pixels[box], "#ffffff")
