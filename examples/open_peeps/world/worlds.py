"""Who and what the foundations are trained on: all of Open Peeps, or a small part of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from examples.open_peeps.world import captions, people
from examples.open_peeps.world import small_world as small
from examples.open_peeps.world.render import Identity, View


@dataclass(frozen=True)
class World:
    """What there is to see, and the language it is told in."""

    people: Callable[[int], Iterator[Identity]]  # by seed: who may be trained on, without end
    # By name: people whom nothing is trained on, each once, in an order by seed.
    held_out: dict[str, Callable[[int], Iterator[Identity]]]
    view: Callable[[np.random.Generator], View]
    reference: Callable[[np.random.Generator], View]  # what a picture of a character shows
    # All that is seen, or, of nobody, the view alone.
    caption: Callable[[View, Identity | None, np.random.Generator], str]
    # What SigLIP learns to match with a reference.
    who: Callable[[View, Identity, np.random.Generator], str]
    words: Callable[[], list[str]]  # that captions are made of, sorted


def _small_people(seed: int) -> Iterator[Identity]:
    rng = np.random.default_rng((seed, 1))
    while True:
        yield small.TRAINED[int(rng.integers(len(small.TRAINED)))]


def _small_held_out(seed: int) -> Iterator[Identity]:
    return (small.HELD[n] for n in np.random.default_rng(seed).permutation(len(small.HELD)))


def _small_caption(view: View, identity: Identity | None, _: np.random.Generator) -> str:
    return small.caption(view, identity)


def _people(seed: int) -> Iterator[Identity]:
    while True:
        yield from people.train_identities(seed)
        seed += 1


def _caption(view: View, identity: Identity | None, rng: np.random.Generator) -> str:
    if identity is None:
        return captions.without_identity(view, rng)
    return captions.with_identity(identity, view, rng)


WORLDS = {
    "peeps": World(
        _people,
        {"known parts": people.held_out_identities, "unseen parts": people.unseen_part_identities},
        lambda rng: people.views(rng, 1)[0],
        people.reference_view,
        _caption,
        lambda _, identity, rng: captions.of_person(identity, rng),
        captions.vocabulary,
    ),
    "small": World(
        _small_people,
        {"held out": _small_held_out},
        small.random_view,
        small.random_view,
        _small_caption,
        _small_caption,
        small.vocabulary,
    ),
}
