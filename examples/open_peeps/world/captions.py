"""Captions in varied English, exact because they are composed from phrases for the drawn parts.

There are three kinds. With identity: everything that is drawn, to train the base model. Without
identity: pose, expression, clothing and background, so that the identity must come from the
reference. Of the person: the appearance alone.
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
    """Describe the view but not the person, for training the adapter."""
    return _caption(view, pick(rng, phrases.PEOPLE), rng)


def with_identity(identity: Identity, view: View, rng: np.random.Generator) -> str:
    """Describe the view and the person, for training the base model."""
    return _caption(view, f"{pick(rng, phrases.PEOPLE)} with {looks(identity, rng)},", rng)


def of_person(identity: Identity, rng: np.random.Generator) -> str:
    """Describe the person but not the view, for training the image encoder."""
    return f"A person with {looks(identity, rng)}."


def _caption(view: View, who: str, rng: np.random.Generator) -> str:
    act, wear = phrases.BODIES[view.body]
    text = pick(rng, TEMPLATES).format(
        frame=pick(rng, phrases.FRAMINGS[body_kind(view.body)]),
        who=who,
        act=pick(rng, act),
        wear=pick(rng, wear).format(c=view.clothing),
        mood=pick(rng, phrases.FACES[view.face]),
        where=pick(rng, phrases.GROUND).format(g=view.ground.replace("-", " ")),
    )
    text = re.sub(r"\ba (?=[aeio])", "an ", text)  # an orange shirt
    return text[0].upper() + text[1:] + "."


def looks(identity: Identity, rng: np.random.Generator) -> str:
    """Describe skin, hair, beard and glasses, in random order."""
    told = [
        pick(rng, options).format(h=identity.hair_colour, s=identity.skin)
        for options in (
            phrases.SKIN,
            phrases.HAIR[identity.hair],
            phrases.FACIAL_HAIR[identity.facial_hair],
            phrases.ACCESSORIES[identity.accessory],
        )
        if options
    ]
    told = [told[n] for n in rng.permutation(len(told))]
    return ", ".join(told[:-1]) + " and " + told[-1]


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """Return one of the options at random."""
    return options[int(rng.integers(len(options)))]


def vocabulary() -> list[str]:
    """Return every word of all captions, in lower case, sorted."""
    parts = [*TEMPLATES, *phrases.PEOPLE, *phrases.GROUND, *phrases.SKIN, "an"]
    for table in (phrases.FRAMINGS, phrases.HAIR, phrases.FACIAL_HAIR, phrases.ACCESSORIES):
        parts += [phrase for options in table.values() for phrase in options]
    parts += [phrase for options in phrases.FACES.values() for phrase in options]
    for act, wear in phrases.BODIES.values():
        parts += [*act, *wear]
    for colours in (palette.SKIN, palette.HAIR_COLOUR, palette.CLOTHING, palette.GROUND):
        parts += [name.replace("-", " ") for name in colours]
    text = re.sub(r"\{\w+\}", " ", " ".join(parts)).lower()
    return sorted(set(re.findall(WORD, text)))
