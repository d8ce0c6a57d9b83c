"""Small world: a part of Open Peeps that a model of a few million parameters can learn.

Twelve busts that differ in pose or outline, 2 592 people, and a small language with one word per
visible property, so that every word has one meaning and a caption is a dozen words.
"""

from itertools import product

import numpy as np

from examples.open_peeps.world.render import Identity, View
from train.data.hashing import is_held_out

BODIES = {
    "ArmsCrossed": "crossing-arms",
    "BlazerBlackTee": "in-blazer",
    "Coffee": "drinking-coffee",
    "DotJacket": "pointing-sideways",
    "FurJacket": "in-fur-jacket",
    "Geek": "holding-laptop",
    "PocketShirt": "hands-on-hips",
    "PointingUp": "pointing-up",
    "Shirt": "in-plain-shirt",
    "StripedShirt": "in-striped-shirt",
    "Thunder": "in-thunder-shirt",
    "Whatever": "shrugging",
}
FACES = {"Smile": "smiling", "SmileLol": "laughing", "Tired": "tired", "VeryAngry": "angry"}
CLOTHING = ("white", "red", "yellow", "green", "blue", "pink")
GROUND = ("white", "light-gray", "pale-yellow", "coral", "lavender", "teal")

HAIR = {
    "Afro": "afro",
    "BangsFilled": "bob",
    "Beanie": "beanie",
    "BunCurly": "curly-bun",
    "Buns": "many-buns",
    "FlatTopLong": "flat-top",
    "Hijab": "hijab",
    "Long": "long-hair",
    "LongAfro": "huge-afro",
    "LongCurly": "long-curls",
    "Pomp": "pompadour",
    "Short": "short-hair",
}
FACIAL_HAIR = {"None": "", "Full": "beard", "MajesticHandlebars": "moustache"}
ACCESSORIES = {"None": "", "GlassRoundThick": "round-glasses", "SunglassWayfarer": "sunglasses"}
SKIN = ("pale", "tan", "brown", "dark")
HAIR_COLOUR = ("black", "ginger", "blond", "gray", "blue", "pink")

HELD_OUT = 0.1  # share of the people that neither base nor adapter is trained on

EVERYONE = tuple(Identity(*p) for p in product(HAIR, FACIAL_HAIR, ACCESSORIES, SKIN, HAIR_COLOUR))


# The rule of `holdout` in a recipe, so that the same share holds out the same people.
HELD = tuple(person for person in EVERYONE if is_held_out(str(person), HELD_OUT))
TRAINED = tuple(person for person in EVERYONE if not is_held_out(str(person), HELD_OUT))


def random_view(rng: np.random.Generator, body: str = "") -> View:
    """Sample a view, of a random body by default."""

    def pick(names: tuple[str, ...] | dict[str, str]) -> str:
        return tuple(names)[int(rng.integers(len(names)))]

    return View(body or pick(BODIES), pick(FACES), pick(CLOTHING), pick(GROUND))


def random_bodies(rng: np.random.Generator, count: int) -> list[str]:
    """Sample different bodies."""
    return [str(name) for name in rng.permutation(tuple(BODIES))[:count]]


def caption(view: View, identity: Identity | None = None) -> str:
    """Describe a view, and with `identity` the appearance of the person."""
    who = [] if identity is None else _looks(identity)
    scene = f"{BODIES[view.body]} {FACES[view.face]} {view.clothing}-clad on-{view.ground}"
    return " ".join(["person", *who, scene])


def _looks(identity: Identity) -> list[str]:
    words = (
        f"{identity.skin}-skinned",
        f"{identity.hair_colour}-haired",  # hats and head scarves are drawn in that colour too
        HAIR[identity.hair],
        FACIAL_HAIR[identity.facial_hair],
        ACCESSORIES[identity.accessory],
    )
    return [word for word in words if word]


def vocabulary() -> list[str]:
    """Return every word of the language, sorted."""
    words = {"person", *BODIES.values(), *FACES.values(), *HAIR.values()}
    words |= {*FACIAL_HAIR.values(), *ACCESSORIES.values()} - {""}
    words |= {f"{c}-clad" for c in CLOTHING} | {f"on-{g}" for g in GROUND}
    words |= {f"{s}-skinned" for s in SKIN} | {f"{h}-haired" for h in HAIR_COLOUR}
    return sorted(words)
