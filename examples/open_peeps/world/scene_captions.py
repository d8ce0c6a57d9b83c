"""Captions of scenes: whole sentences, fragments in free order, synonyms and unknown words.

Of every figure the caption tells pose, clothing and mood or some of them; its identity only where
asked, since the identity of the reference's person must come from the reference. With two people,
it says who does what by their places: on the left, on the right, in front, behind.
"""

import re
from collections.abc import Collection

import numpy as np

from examples.open_peeps.world import captions, phrases
from examples.open_peeps.world.captions import WORD, looks, pick
from examples.open_peeps.world.scenes import Figure, Scene

FRAGMENTS = 0.5  # share of captions of one person that are fragments instead of sentences
KEPT = 0.6  # probability of each fragment
SYNONYM = 0.25  # share of words with synonyms that are replaced
UNKNOWN = 0.15  # share of captions with one unknown word or two
PEOPLE = (*phrases.PEOPLE, "a figure", "somebody", "a human")
GROUND = (*phrases.GROUND, "on {g}", "{g} background", "a {g} ground")
LEFT = ("on the left", "at left", "left")
RIGHT = ("on the right", "at right", "right")
BACK, FRONT = ("behind", "in the back"), ("in front", "in the foreground")
BOTH = ("two people", "a drawing of two people", "two characters", "a picture of two figures")
SYNONYMS = {
    "red": ("crimson", "scarlet"),
    "green": ("emerald",),
    "blue": ("azure",),
    "purple": ("violet",),
    "pink": ("rose",),
    "gray": ("grey",),
    "blond": ("fair",),
    "bicycle": ("bike",),
    "walking": ("going", "wandering"),
    "phone": ("cellphone",),
    "laptop": ("computer",),
    "shirt": ("top",),
    "t-shirt": ("tee",),
    "sweater": ("pullover", "jumper"),
    "jacket": ("coat",),
    "smile": ("smiling",),
    "angry": ("cross", "mad"),
    "tired": ("sleepy",),
    "glasses": ("spectacles",),
    "moustache": ("mustache",),
    "huge": ("enormous", "big"),
    "drinking": ("sipping",),
    "background": ("backdrop",),
    "wearing": ("wears",),
}


def caption(scene: Scene, told: Collection[int], rng: np.random.Generator) -> str:
    """Describe a scene.

    Args:
        told: indices of the figures, in the order of `scene.figures`, whose identity is told.
    """
    if len(scene.figures) == 1 and rng.random() >= FRAGMENTS:
        person, view, *_ = scene.figures[0]
        if told:
            text = captions.with_identity(person, view, rng)
        else:
            text = captions.without_identity(view, rng)
    else:
        text = _fragments(scene, told, rng, KEPT)
    return with_unknown_words(with_synonyms(text, rng), rng)


def in_full(scene: Scene, told: Collection[int], rng: np.random.Generator) -> str:
    """Describe all of a scene in fragments, with words that every training shows."""
    return _fragments(scene, told, rng, 1.0)


def _fragments(scene: Scene, told: Collection[int], rng: np.random.Generator, kept: float) -> str:
    count, leftmost = len(scene.figures), scene.from_left[0]
    parts = []
    for n, f in enumerate(scene.figures):
        text = _figure(f, n in told, rng, kept)
        if count > 1:
            place = pick(rng, LEFT if f is leftmost else RIGHT)
            if scene.overlapping and rng.random() < 0.5:
                place += " " + pick(rng, FRONT if n == count - 1 else BACK)
            text = f"{place} {text}" if rng.random() < 0.5 else f"{text} {place}"
        parts.append(text)
    parts = _shuffled(parts, rng)
    ground = scene.ground.replace("-", " ")
    if rng.random() < 0.3:
        ground = ground.split()[-1]  # yellow for pale yellow
    if rng.random() < 0.8 or kept == 1:
        where = pick(rng, GROUND).format(g=ground)
        parts = [where, *parts] if rng.random() < 0.3 else [*parts, where]
    if count > 1 and rng.random() < 0.5:
        parts = [pick(rng, BOTH), *parts]
    return (", " if count == 1 or rng.random() < 0.5 else "; ").join(parts)


def _figure(f: Figure, told: bool, rng: np.random.Generator, kept: float) -> str:
    """Return fragments of one figure in free order; at least one."""
    act, wear = phrases.BODIES[f.view.body]
    fragments = [
        pick(rng, act),
        ("in " if rng.random() < 0.5 else "wearing ") + pick(rng, wear).format(c=f.view.clothing),
        "with " + pick(rng, phrases.FACES[f.view.face]),
    ]
    if told:
        fragments.append("with " + looks(f.identity, rng))
    some = [text for text in fragments if rng.random() < kept]
    some = _shuffled(some or [pick(rng, tuple(fragments))], rng)
    who = [pick(rng, PEOPLE)] if rng.random() < 0.7 else []
    return (" " if rng.random() < 0.5 else ", ").join([*who, *some])


def with_synonyms(text: str, rng: np.random.Generator) -> str:
    """Replace a share of the words that have synonyms by one."""

    def other(match: re.Match) -> str:
        options = SYNONYMS.get(match[0].lower())
        return pick(rng, options) if options and rng.random() < SYNONYM else match[0]

    return re.sub(WORD, other, text)


def with_unknown_words(text: str, rng: np.random.Generator) -> str:
    """Insert words that no vocabulary holds into a share of the captions."""
    if rng.random() >= UNKNOWN:
        return text
    words = text.split(" ")
    for _ in range(int(rng.integers(1, 3))):
        letters = rng.integers(ord("a"), ord("z") + 1, int(rng.integers(6, 10)))
        words.insert(int(rng.integers(len(words) + 1)), "".join(map(chr, letters)))
    return " ".join(words)


def _shuffled(parts: list[str], rng: np.random.Generator) -> list[str]:
    return [parts[n] for n in rng.permutation(len(parts))]


def vocabulary() -> list[str]:
    """Return every word of all captions of scenes but the unknown ones, in lower case, sorted."""
    texts = [*PEOPLE, *GROUND, *LEFT, *RIGHT, *BACK, *FRONT, *BOTH, "in wearing with"]
    texts += [word for options in SYNONYMS.values() for word in options]
    text = re.sub(r"\{\w+\}", " ", " ".join(texts)).lower()
    return sorted({*captions.vocabulary(), *re.findall(WORD, text)})
