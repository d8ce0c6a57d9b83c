"""The two worlds that models are trained on: all of Open Peeps, and a small part of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from examples.open_peeps.world import captions, people, scene_captions, scenes, small_world
from examples.open_peeps.world.render import Identity, View


@dataclass(frozen=True)
class World:
    """People, views and captions of a world."""

    people: Callable[[int], Iterator[Identity]]  # by seed: people to train on, without end
    # By name: people that no training shows, each once, in an order given by the seed.
    held_out: dict[str, Callable[[int], Iterator[Identity]]]
    view: Callable[[np.random.Generator], View]
    reference: Callable[[np.random.Generator], View]  # the view of a reference picture
    # A caption of view and identity, or of the view alone.
    caption: Callable[[View, Identity | None, np.random.Generator], str]
    # A caption that SigLIP learns to match with a reference.
    describe: Callable[[View, Identity, np.random.Generator], str]
    words: Callable[[], list[str]]  # the vocabulary of all captions, sorted
    # A caption of the view alone in fragments, in free order; None where captions have one form.
    fragments: Callable[[View, np.random.Generator], str] | None = None


def _small_people(seed: int) -> Iterator[Identity]:
    rng = np.random.default_rng((seed, 1))
    while True:
        yield small_world.TRAINED[int(rng.integers(len(small_world.TRAINED)))]


def _small_held_out(seed: int) -> Iterator[Identity]:
    held = small_world.HELD
    return (held[n] for n in np.random.default_rng(seed).permutation(len(held)))


def _small_caption(view: View, identity: Identity | None, _: np.random.Generator) -> str:
    return small_world.caption(view, identity)


def _people(seed: int) -> Iterator[Identity]:
    while True:
        yield from people.train_identities(seed)
        seed += 1


def _caption(view: View, identity: Identity | None, rng: np.random.Generator) -> str:
    if identity is None:
        return captions.without_identity(view, rng)
    return captions.with_identity(identity, view, rng)


def _fragments(view: View, rng: np.random.Generator) -> str:
    person = next(people.held_out_identities(0))  # its identity is not told
    return scene_captions.in_full(scenes.alone(person, view), (), rng)


WORLDS = {
    "peeps": World(
        _people,
        {"known parts": people.held_out_identities, "unseen parts": people.unseen_part_identities},
        lambda rng: people.views(rng, 1)[0],
        people.reference_view,
        _caption,
        lambda _, identity, rng: captions.of_person(identity, rng),
        captions.vocabulary,
        _fragments,
    ),
    "small": World(
        _small_people,
        {"held out": _small_held_out},
        small_world.random_view,
        small_world.random_view,
        _small_caption,
        _small_caption,
        small_world.vocabulary,
    ),
}
