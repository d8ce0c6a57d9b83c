"""Scenes: one person, or two side by side or overlapping, on one ground, and their pixels."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from examples.open_peeps.world.palette import GROUND
from examples.open_peeps.world.people import views
from examples.open_peeps.world.render import (
    FACE_BOX,
    HEAD_BOX,
    VIEW_BOXES,
    Identity,
    View,
    body_kind,
    figure,
    over,
    rasterize,
    render,
)

# Two figures in one picture: side of the square of each, and the most distance between their
# middles, as shares of the picture's side.
PLACES = {"bust": (0.64, 0.46), "sitting": (0.8, 0.46), "standing": (0.8, 0.46)}
LEAST_DISTANCE = 0.6  # of the most
FLOOR = 0.98  # height at which two figures end, whether they sit or stand
OVERLAPPING = 0.8  # below this share of the most distance, captions say who is in front


class Figure(NamedTuple):
    """Person in a view, and the square of the picture that shows them, as shares of its side."""

    identity: Identity
    view: View
    left: float = 0.0
    top: float = 0.0
    side: float = 1.0


class Scene(NamedTuple):
    """Figures on one ground; the last stands in front."""

    figures: tuple[Figure, ...]
    ground: str
    overlapping: bool = False

    @property
    def from_left(self) -> tuple[Figure, ...]:
        """The figures in order of their places."""
        return tuple(sorted(self.figures, key=lambda f: f.left))


def alone(identity: Identity, view: View) -> Scene:
    """Return the scene of one person, as `render.picture` draws it."""
    return Scene((Figure(identity, view),), view.ground)


def pair(identities: Sequence[Identity], rng: np.random.Generator) -> Scene:
    """Sample a scene of two people: both half-length, or both full-length."""
    first, second = views(rng, 2)
    while (body_kind(first.body) == "bust") != (body_kind(second.body) == "bust"):
        first, second = views(rng, 2)
    share = rng.uniform(LEAST_DISTANCE, 1)
    sides = rng.permutation([-0.5, 0.5])
    figures = []
    for identity, view, way in zip(identities, (first, second), sides, strict=True):
        side, most = PLACES[body_kind(view.body)]
        left = 0.5 + way * share * most - side / 2
        top = FLOOR - side * _lowest(view.body)
        figures.append(Figure(identity, replace(view, ground=first.ground), left, top, side))
    if rng.random() < 0.5:
        figures.reverse()  # who is in front
    return Scene(tuple(figures), first.ground, bool(share < OVERLAPPING))


@cache
def _lowest(body: str) -> float:
    """Return where a figure ends, as a share of its square's side."""
    person = Identity("Short", "None", "None", "tan", "black")
    size = 256
    rows = render(person, View(body, "Calm", "red", "white"), size)[..., 3].any(1)
    return float(np.flatnonzero(rows)[-1] + 1) / size


def picture(scene: Scene, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Render a scene to [size, size, 3] over its ground."""
    parts = []
    for f in scene.figures:
        left, top, side = VIEW_BOXES[body_kind(f.view.body)]
        parts.append(
            f'<svg x="{f.left * size:.2f}" y="{f.top * size:.2f}" width="{f.side * size:.2f}" '
            f'height="{f.side * size:.2f}" viewBox="{left} {top} {side} {side}">'
            f"{figure(f.identity, f.view)}</svg>"
        )
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}">'
    return over(rasterize(svg + "".join(parts) + "</svg>"), GROUND[scene.ground])


def region(scene: Scene, place: int) -> tuple[float, float, float, float]:
    """Return the box of a figure as shares of the sides: up to the middle between two figures."""
    if len(scene.figures) == 1:
        return 0.0, 0.0, 1.0, 1.0
    f = scene.figures[place]
    middle = sum(g.left + g.side / 2 for g in scene.figures) / 2
    is_left = f is scene.from_left[0]
    left = max(0.0, f.left if is_left else middle)
    right = min(1.0, middle if is_left else f.left + f.side)
    return left, max(0.0, f.top), right, min(1.0, f.top + f.side)


def focus_boxes(scene: Scene, size: int) -> list[tuple[float, float, float, float]]:
    """Return the boxes of every head and face in pixels."""
    return [box_of(f, box, size) for f in scene.figures for box in (HEAD_BOX, FACE_BOX)]


def box_of(
    f: Figure, box: tuple[int, int, int, int], size: int
) -> tuple[float, float, float, float]:
    """Convert a box from units of the drawings to pixels of a picture of [size, size]."""
    left, top, side = VIEW_BOXES[body_kind(f.view.body)]
    scale = f.side * size / side
    x, y = f.left * size - left * scale, f.top * size - top * scale
    return tuple(v * scale + at for v, at in zip(box, (x, y, x, y), strict=True))  # type: ignore[return-value]
