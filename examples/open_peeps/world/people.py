"""People of the world: all combinations of parts, the held-out ones, and iterators over both.

A hash of the id decides who is held out, so that the choice does not depend on a library's random
number generator.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from operator import itemgetter

import numpy as np

from examples.open_peeps.world.palette import CLOTHING, GROUND, HAIR_COLOUR, SKIN
from examples.open_peeps.world.render import VIEW_BOXES, Identity, View, parts

# Not people, or a mask that hides the face.
NOT_HAIR = {"Bear", "DocBouffant", "DocShield", "DocSurgery"}
NOT_FACES = {"Cyclops", "Monster"}
# A knife; and two coats of fixed colour, which no caption could ask to change.
NOT_BODIES = {"Killer", "Doc", "DocStethoscope"}

HAIR = tuple(sorted(parts()["hair"].keys() - NOT_HAIR))
FACIAL_HAIR = tuple(sorted(parts()["facial_hair"]))
ACCESSORIES = tuple(sorted(parts()["accessory"]))
FACES = tuple(sorted(parts()["face"].keys() - NOT_FACES))
BODIES = tuple(name for kind in VIEW_BOXES for name in sorted(parts()[kind].keys() - NOT_BODIES))
# Drawn in ink alone: the clothing colour is invisible, so no caption names it.
COLOURLESS_BODIES = frozenset({"Turtleneck"})

# Never trained on, so that a model must copy them from the reference instead of recalling them.
# Hair: one of each silhouette (knots, bun, short, long, hat), unlike all known outlines.
# Accessories: glasses similar to a known pair, and a patch. Colour: no shade of a known colour.
UNSEEN_HAIR = frozenset({"BantuKnots", "BunFancy", "FlatTop", "MediumStraight", "HatHip"})
UNSEEN_ACCESSORIES = frozenset({"Eyepatch", "GlassClubmaster"})
UNSEEN_HAIR_COLOURS = frozenset({"green"})

HELD_OUT = 1000

# Arms down and a calm face, for reference pictures.
REFERENCE_BODIES = (
    "BlazerBlackTee",
    "ButtonShirt",
    "FurJacket",
    "Hoodie",
    "PoloSweater",
    "Shirt",
    "ShirtCoat",
    "ShirtFilled",
    "SportyShirt",
    "StripedShirt",
    "SweaterDots",
    "Turtleneck",
)
REFERENCE_FACES = ("Blank", "Calm", "Serious", "Smile")

ALL_PARTS = (HAIR, FACIAL_HAIR, ACCESSORIES, tuple(SKIN), tuple(HAIR_COLOUR))
KNOWN_PARTS = (
    tuple(name for name in HAIR if name not in UNSEEN_HAIR),
    FACIAL_HAIR,
    tuple(name for name in ACCESSORIES if name not in UNSEEN_ACCESSORIES),
    tuple(SKIN),
    tuple(name for name in HAIR_COLOUR if name not in UNSEEN_HAIR_COLOURS),
)
KNOWN_COUNT = prod(map(len, KNOWN_PARTS))


def has_unseen_part(identity: Identity) -> bool:
    """Return whether hair, accessory or hair colour is never trained on."""
    return (
        identity.hair in UNSEEN_HAIR
        or identity.accessory in UNSEEN_ACCESSORIES
        or identity.hair_colour in UNSEEN_HAIR_COLOURS
    )


def nth_identity(number: int, parts: tuple[tuple[str, ...], ...]) -> Identity:
    """Return a combination of parts by its number, below the product of the parts' counts."""
    names = []
    for options in parts:
        number, rest = divmod(number, len(options))
        names.append(options[rest])
    return Identity(*names)


@cache
def held_out() -> tuple[Identity, ...]:
    """Return the HELD_OUT identities of known parts with the smallest hashes; never trained on."""
    known = (nth_identity(number, KNOWN_PARTS) for number in range(KNOWN_COUNT))
    hashed = ((hashlib.sha256(str(identity).encode()).digest(), identity) for identity in known)
    return tuple(identity for _, identity in heapq.nsmallest(HELD_OUT, hashed, key=itemgetter(0)))


def train_identities(seed: int) -> Iterator[Identity]:
    """Yield every identity that may be trained on, once, in an order given by the seed."""
    excluded = set(held_out())
    return (person for person in _shuffled(seed, KNOWN_PARTS) if person not in excluded)


def held_out_identities(seed: int) -> Iterator[Identity]:
    """Yield the held-out identities of known parts, once each, in an order given by the seed."""
    return (held_out()[n] for n in np.random.default_rng(seed).permutation(HELD_OUT))


def unseen_part_identities(seed: int) -> Iterator[Identity]:
    """Yield every identity with an unseen part, once, in an order given by the seed."""
    return filter(has_unseen_part, _shuffled(seed, ALL_PARTS))


def _shuffled(seed: int, parts: tuple[tuple[str, ...], ...]) -> Iterator[Identity]:
    order = np.random.default_rng(seed).permutation(prod(map(len, parts)))
    return (nth_identity(int(number), parts) for number in order)


SPLITS: dict[str, Callable[[int], Iterator[Identity]]] = {
    "train": train_identities,
    "held-out": held_out_identities,
    "unseen-parts": unseen_part_identities,
}


def reference_view(rng: np.random.Generator) -> View:
    """Sample a neutral bust on white."""
    return View(
        _pick(rng, REFERENCE_BODIES), _pick(rng, REFERENCE_FACES), _pick(rng, CLOTHING), "white"
    )


def views(rng: np.random.Generator, count: int, apart_from: str = "") -> list[View]:
    """Sample views with bodies other than `apart_from` and, as far as possible, all different."""
    bodies = [name for name in BODIES if name != apart_from]
    rounds = -(-count // len(bodies))
    order = np.concatenate([rng.permutation(len(bodies)) for _ in range(rounds)])[:count]
    return [
        View(bodies[n], _pick(rng, FACES), _pick(rng, CLOTHING), _pick(rng, GROUND)) for n in order
    ]


def _pick(rng: np.random.Generator, names: tuple[str, ...] | dict[str, str]) -> str:
    options = tuple(names)
    return options[int(rng.integers(len(options)))]
