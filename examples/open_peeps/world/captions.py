"""Captions in varied English, exact because they are made of the parts' own phrases.

Three kinds. With identity: everything that is drawn, to train the base model on. Without: what the
person does, feels and wears, and where, so that who it is can come from the reference alone. Of
the person: who it is alone.
"""

import re

import numpy as np

from examples.open_peeps.world import palette, phrases
from examples.open_peeps.world.render import Identity, View, body_kind

WORD = r"[\w'-]+"
# {who}, {act}, {wear}, {mood}, {where}: each exactly once.
TEMPLATES = (
    "{frame} {who} {act}, wearing {wear}, with {mood}, {where}",
    "{frame} {who} in {wear}, {act}, with {mood}, {where}",
    "{frame} {who} with {mood}, {act}, dressed in {wear}, {where}",
    "{frame} {who} {act} {where}, in {wear}, with {mood}",
    "{where}, {frame} {who} {act}, wearing {wear}, with {mood}",
)


def without_identity(view: View, rng: np.random.Generator) -> str:
    """For the adapter: nothing of hair, beard, glasses, skin."""
    return _caption(view, _pick(rng, phrases.PEOPLE), rng)


def with_identity(identity: Identity, view: View, rng: np.random.Generator) -> str:
    """For the base model: all that is drawn."""
    return _caption(view, f"{_pick(rng, phrases.PEOPLE)} with {_looks(identity, rng)},", rng)


def of_person(identity: Identity, rng: np.random.Generator) -> str:
    """For the image encoder that is to tell people apart: nothing of the view."""
    return f"A person with {_looks(identity, rng)}."


def _caption(view: View, who: str, rng: np.random.Generator) -> str:
    act, wear = phrases.BODIES[view.body]
    text = _pick(rng, TEMPLATES).format(
        frame=_pick(rng, phrases.FRAMINGS[body_kind(view.body)]),
        who=who,
        act=_pick(rng, act),
        wear=_pick(rng, wear).format(c=view.clothing),
        mood=_pick(rng, phrases.FACES[view.face]),
        where=_pick(rng, phrases.GROUND).format(g=view.ground.replace("-", " ")),
    )
    text = re.sub(r"\ba (?=[aeio])", "an ", text)  # an orange shirt
    return text[0].upper() + text[1:] + "."


def _looks(identity: Identity, rng: np.random.Generator) -> str:
    said = [
        _pick(rng, options).format(h=identity.hair_colour, s=identity.skin)
        for options in (
            phrases.SKIN,
            phrases.HAIR[identity.hair],
            phrases.FACIAL_HAIR[identity.facial_hair],
            phrases.ACCESSORIES[identity.accessory],
        )
        if options
    ]
    said = [said[n] for n in rng.permutation(len(said))]
    return ", ".join(said[:-1]) + " and " + said[-1]


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def vocabulary() -> list[str]:
    """Every word of all kinds of captions, in lower case, sorted."""
    said = [*TEMPLATES, *phrases.PEOPLE, *phrases.GROUND, *phrases.SKIN, "an"]
    for table in (phrases.FRAMINGS, phrases.HAIR, phrases.FACIAL_HAIR, phrases.ACCESSORIES):
        said += [phrase for options in table.values() for phrase in options]
    said += [phrase for options in phrases.FACES.values() for phrase in options]
    for act, wear in phrases.BODIES.values():
        said += [*act, *wear]
    for colours in (palette.SKIN, palette.HAIR_COLOUR, palette.CLOTHING, palette.GROUND):
        said += [name.replace("-", " ") for name in colours]
    text = re.sub(r"\{\w+\}", " ", " ".join(said)).lower()
    return sorted(set(re.findall(WORD, text)))
