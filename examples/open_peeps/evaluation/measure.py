"""What a generated picture shows, read off without a learned judge.

Every picture of this world can be drawn again exactly, so each question is: which of these renders
is the picture nearest to? Nearest means the least mean squared error in RGB from 0 to 1, both
pictures blurred a little (a Gaussian of a 128th of the side) so that a line that is half a pixel
off still counts as near. Candidates differ in what is asked and agree in all else; identity and
face are compared in the head's box. Equal distances go to the truth: two renders that are equal to
the byte (glasses may hide what a face differs in) cannot be told apart by anyone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Num

from examples.open_peeps.world.palette import CLOTHING, GROUND
from examples.open_peeps.world.people import BODIES, COLOURLESS_BODIES, FACES
from examples.open_peeps.world.render import Identity, View, head_box, over, render

CACHED_RENDERS = 1024  # several times what one read() draws; at 128 pixels 64 KiB each

T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """What a picture is nearest to; `clothing` is None where the body shows no colour."""

    identity: Identity
    body: str
    face: str
    clothing: str | None
    ground: str


@dataclass(frozen=True)
class Score:
    """Which questions a reading answers right; None where a question has no answer.

    `copied`: the body is the reference's, though the prompt asked for another.
    """

    identity: bool
    body: bool
    face: bool
    clothing: bool | None
    ground: bool
    copied: bool | None


def read(
    pictures: Num[np.ndarray, "n h h 3"],
    identity: Identity,
    view: View,
    others: Sequence[Identity],
) -> list[Reading]:
    """Read pictures that were meant to show `identity` in `view`.

    Args:
        pictures: uint8, or floats from 0 to 1. Give all pictures that were asked to show the
            same (seeds, control rows) in one call: the renders are drawn once for them.
        others: with `identity`, the candidates of the identity question (chance: one in
            len(others) + 1).
    """
    size = pictures.shape[1]
    people = _truth_first(others, identity)
    bodies = _truth_first(BODIES, view.body)
    faces = _truth_first(FACES, view.face)
    clothes = _truth_first(CLOTHING, view.clothing)
    grounds = _truth_first(GROUND, view.ground)
    head, everything = head_box(view.body, size), (0, 0, size, size)

    def nearest(candidates: list[tuple[Identity, View]], box: tuple[int, ...]) -> list[int]:
        drawn = np.stack([_drawn(*candidate, size) for candidate in candidates])
        return _nearest(_seen(pictures, box), _seen(drawn, box))

    found = zip(
        nearest([(person, view) for person in people], head),
        nearest([(identity, replace(view, body=name)) for name in bodies], everything),
        nearest([(identity, replace(view, face=name)) for name in faces], head),
        nearest([(identity, replace(view, clothing=name)) for name in clothes], everything),
        nearest([(identity, replace(view, ground=name)) for name in grounds], everything),
        strict=True,
    )
    dressed = view.body not in COLOURLESS_BODIES
    return [
        Reading(people[i], bodies[b], faces[f], clothes[c] if dressed else None, grounds[g])
        for i, b, f, c, g in found
    ]


def score(reading: Reading, identity: Identity, view: View, reference: View) -> Score:
    """Compare a reading with what was asked for, given the reference picture's own view."""
    return Score(
        identity=reading.identity == identity,
        body=reading.body == view.body,
        face=reading.face == view.face,
        clothing=None if reading.clothing is None else reading.clothing == view.clothing,
        ground=reading.ground == view.ground,
        copied=None if reference.body == view.body else reading.body == reference.body,
    )


def rates(scores: Sequence[Score]) -> dict[str, float]:
    """The share of yes for each question, over the scores that have an answer; nan for none."""
    answers = {name: [asdict(one)[name] for one in scores] for name in Score.__annotations__}
    given = {name: [a for a in all_ if a is not None] for name, all_ in answers.items()}
    return {name: float(np.mean(some)) if some else float("nan") for name, some in given.items()}


def _truth_first(names: Iterable[T], truth: T) -> list[T]:
    return [truth, *(name for name in names if name != truth)]


def _nearest(asked: Float[np.ndarray, "n k"], candidates: Float[np.ndarray, "m k"]) -> list[int]:
    """For each picture the candidate with the least squared error."""
    return [int(((one - candidates) ** 2).sum(-1).argmin()) for one in asked]


@lru_cache(CACHED_RENDERS)
def _cut_out(identity: Identity, body: str, face: str, clothing: str, size: int) -> np.ndarray:
    return render(identity, View(body, face, clothing, "white"), size)


def _drawn(identity: Identity, view: View, size: int) -> np.ndarray:
    pixels = _cut_out(identity, view.body, view.face, view.clothing, size)
    return over(pixels, GROUND[view.ground])


def _seen(pictures: Num[np.ndarray, "n h h 3"], box: tuple[int, ...]) -> np.ndarray:
    """What is compared: the box, from 0 to 1, blurred, as float32 [n, k]."""
    left, top, right, bottom = box
    part = pictures[:, top:bottom, left:right].astype(np.float32)
    if pictures.dtype == np.uint8:
        part /= 255
    sigma = pictures.shape[1] / 128
    rows, columns = (_blur_matrix(length, sigma) for length in part.shape[1:3])
    blurred = np.einsum("ij,kl,njlc->nikc", rows, columns, part, optimize=True)
    return blurred.reshape(len(part), -1)


@cache
def _blur_matrix(length: int, sigma: float) -> Float[np.ndarray, "h h"]:
    at = np.arange(length)
    weights = np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
