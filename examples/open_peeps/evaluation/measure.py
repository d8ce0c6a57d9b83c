"""Reading of generated pictures by nearest exact render, without a learned judge.

Every picture of this world can be rendered exactly, so each question has a finite set of candidate
renders, and the answer is the candidate nearest to the picture: the one with the least mean squared
error in RGB from 0 to 1. Both pictures are blurred first (a Gaussian of 1/128 of the side), so that
a line that is half a pixel off still counts as near. Candidates differ in the questioned attribute
only; identity and face are compared in the head's box. Ties go to the truth: two renders that are
equal to the byte (glasses may hide what distinguishes two faces) cannot be told apart by anyone.
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

CACHED_RENDERS = 1024  # several times the renders of one read(); 64 KiB each at 128 pixels

T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """Nearest candidates of a picture; `clothing` is None where the body shows no colour."""

    identity: Identity
    body: str
    face: str
    clothing: str | None
    ground: str


@dataclass(frozen=True)
class Score:
    """Right and wrong answers of one reading; None where a question does not apply."""

    identity: bool
    body: bool
    face: bool
    clothing: bool | None
    ground: bool
    copied: bool | None  # the body is the reference's, though the prompt asked for another


def read(
    pictures: Num[np.ndarray, "n h h 3"],
    identity: Identity,
    view: View,
    others: Sequence[Identity],
) -> list[Reading]:
    """Read pictures that should show `identity` in `view`.

    Args:
        pictures: uint8, or floats from 0 to 1. Pass all pictures of one identity and view (seeds,
            control rows) in one call, which renders the candidates once for all of them.
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

    def nearest_of(candidates: list[tuple[Identity, View]], box: tuple[int, ...]) -> list[int]:
        renders = np.stack([_rendered(*candidate, size) for candidate in candidates])
        return nearest(blurred(pictures, box), blurred(renders, box))

    answers = zip(
        nearest_of([(person, view) for person in people], head),
        nearest_of([(identity, replace(view, body=name)) for name in bodies], everything),
        nearest_of([(identity, replace(view, face=name)) for name in faces], head),
        nearest_of([(identity, replace(view, clothing=name)) for name in clothes], everything),
        nearest_of([(identity, replace(view, ground=name)) for name in grounds], everything),
        strict=True,
    )
    has_colour = view.body not in COLOURLESS_BODIES
    return [
        Reading(people[i], bodies[b], faces[f], clothes[c] if has_colour else None, grounds[g])
        for i, b, f, c, g in answers
    ]


def score(reading: Reading, identity: Identity, view: View, reference: View) -> Score:
    """Compare a reading with the truth; `reference` is the view of the reference picture."""
    return Score(
        identity=reading.identity == identity,
        body=reading.body == view.body,
        face=reading.face == view.face,
        clothing=None if reading.clothing is None else reading.clothing == view.clothing,
        ground=reading.ground == view.ground,
        copied=None if reference.body == view.body else reading.body == reference.body,
    )


def rates(scores: Sequence[Score]) -> dict[str, float]:
    """Return the share of right answers for each question, of those that apply; nan if none do."""
    rows = [asdict(score) for score in scores]
    answers = {q: [row[q] for row in rows if row[q] is not None] for q in Score.__annotations__}
    return {q: float(np.mean(a)) if a else float("nan") for q, a in answers.items()}


def _truth_first(names: Iterable[T], truth: T) -> list[T]:
    return [truth, *(name for name in names if name != truth)]


def nearest(pictures: Float[np.ndarray, "n k"], candidates: Float[np.ndarray, "m k"]) -> list[int]:
    """Return for each picture the candidate with the least squared error."""
    return [int(((picture - candidates) ** 2).sum(-1).argmin()) for picture in pictures]


@lru_cache(CACHED_RENDERS)
def _cut_out(identity: Identity, body: str, face: str, clothing: str, size: int) -> np.ndarray:
    return render(identity, View(body, face, clothing, "white"), size)


def _rendered(identity: Identity, view: View, size: int) -> np.ndarray:
    pixels = _cut_out(identity, view.body, view.face, view.clothing, size)
    return over(pixels, GROUND[view.ground])


def blurred(pictures: Num[np.ndarray, "n h h 3"], box: tuple[int, ...]) -> np.ndarray:
    """Return the box of every picture, from 0 to 1, blurred, as float32 [n, k]."""
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
