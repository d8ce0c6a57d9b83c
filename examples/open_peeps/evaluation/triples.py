"""Evaluation questions: held-out people, each with a reference picture and a prompt to answer."""

from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from examples.open_peeps.world.render import Identity, View, over, render
from examples.open_peeps.world.worlds import WORLDS, World

SIDE = 128  # least pixels of a reference's longer side; encoders see the reference in tiles, too
CANDIDATES = 50  # of the identity question; chance is 2%
ORDER = 12  # seed of the order of the people and of their views
POOL = 1000  # people that triples and candidates are taken from


class Triple(NamedTuple):
    """A person, a reference picture of them, and the view to generate."""

    identity: Identity
    reference_view: View
    view: View  # to generate; its body differs from the reference's
    prompt: str  # describes `view` and nothing of the identity
    full_prompt: str  # describes both
    fragments: str | None  # describes `view` in fragments; None where captions have one form
    reference: UInt8[np.ndarray, "h w 3"]  # cut out onto white, as in training
    others: tuple[Identity, ...]  # with `identity`, the candidates of the identity question


def held_out_triples(world: str, people: str, count: int, first: int = 0) -> list[Triple]:
    """Return `count` triples; the nth is the same for every model and every count.

    Args:
        world: a key of `examples.open_peeps.world.worlds.WORLDS`.
        people: a key of that world's `held_out`.
        first: number of triples to skip.

    Raises:
        ValueError: there are fewer people.
    """
    everyone = list(islice(WORLDS[world].held_out[people](ORDER), POOL))
    if len(everyone) < first + count:
        raise ValueError(
            f"{count} triples after the first {first}: {world} has {len(everyone)} people of the "
            f"kind {people!r}; ask for at most {len(everyone) - first}"
        )
    return [_triple(WORLDS[world], everyone, n) for n in range(first, first + count)]


def _triple(world: World, everyone: list[Identity], n: int) -> Triple:
    rng, identity = np.random.default_rng((n, ORDER)), everyone[n]
    reference_view, view = world.reference(rng), world.view(rng)
    while view.body == reference_view.body:
        view = world.view(rng)
    prompt, full_prompt = world.caption(view, None, rng), world.caption(view, identity, rng)
    others = [everyone[k] for k in rng.permutation(len(everyone)) if k != n]
    fragments = world.fragments(view, rng) if world.fragments else None
    return Triple(
        identity,
        reference_view,
        view,
        prompt,
        full_prompt,
        fragments,
        cut_out(identity, reference_view),
        tuple(others[: CANDIDATES - 1]),
    )


def cut_out(identity: Identity, view: View) -> UInt8[np.ndarray, "h w 3"]:
    """Render the figure on white, cropped as `train.data.pictures.prepare_reference` does."""
    pixels = render(identity, view, 2 * SIDE)
    figure = pixels[..., 3] >= 128
    rows, columns = np.flatnonzero(figure.any(1)), np.flatnonzero(figure.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return over(pixels[box], "#ffffff")
