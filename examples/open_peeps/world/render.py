"""A person and a view of it, drawn exactly: SVG put together from parts, resvg for the pixels."""

import gzip
import io
import json
from dataclasses import astuple, dataclass
from functools import cache
from math import ceil, floor
from pathlib import Path
from typing import Self

import numpy as np
import resvg_py
from PIL import Image

from examples.open_peeps.world.extract import INK, PAPER
from examples.open_peeps.world.palette import CLOTHING, GROUND, HAIR_COLOUR, LINE, SKIN, UNPAINTED

# (left, top, side) of the square a body is drawn in, in the drawings' units: every body with
# every head fits, tall hair (which begins at -122) and the bicycle's wheels included.
VIEW_BOXES = {
    "bust": (-250, -130, 1350),
    "sitting": (-1050, -125, 3360),
    "standing": (-1000, -125, 3125),
}
# Where react-peeps puts the head, and the head's parts within it.
HEAD, FACE, FACIAL_HAIR, ACCESSORY = (225, 0), (159, 186), (123, 338), (47, 241)
# (left, top, right, bottom) of all hair but the longest tips, beards and glasses.
HEAD_BOX = (70, -125, 945, 710)
FACE_BOX = (415, 205, 650, 470)  # of all that faces differ in


@dataclass(frozen=True)
class Names:
    """One name for all fields, fit for files and ids: "Afro.None.Eyepatch.tan.ginger"."""

    def __str__(self) -> str:
        return ".".join(astuple(self))

    @classmethod
    def parse(cls, name: str) -> Self:
        return cls(*name.split("."))


@dataclass(frozen=True)
class Identity(Names):
    """Who it is: names of parts and of colours (examples.open_peeps.world.palette)."""

    hair: str
    facial_hair: str
    accessory: str
    skin: str
    hair_colour: str


@dataclass(frozen=True)
class View(Names):
    """What it does, feels and wears, and where: names of parts and of colours."""

    body: str
    face: str
    clothing: str
    ground: str


@cache
def parts() -> dict[str, dict[str, str]]:
    """{kind: {name: SVG}} with INK and PAPER for the colours, and "credit"."""
    return json.loads(gzip.decompress((Path(__file__).parent / "parts.json.gz").read_bytes()))


@cache
def body_kind(body: str) -> str:
    """A key of VIEW_BOXES."""
    return next(kind for kind in VIEW_BOXES if body in parts()[kind])


def svg(identity: Identity, view: View, size: int) -> str:
    """The drawing as SVG of [size, size] pixels, without ground."""
    kind = body_kind(view.body)
    left, top, side = VIEW_BOXES[kind]
    skin, hair = SKIN[identity.skin], HAIR_COLOUR[identity.hair_colour]
    head = (
        _part("hair", identity.hair, (0, 0), hair, skin)
        + _part("face", view.face, FACE, LINE, skin)
        + _part("facial_hair", identity.facial_hair, FACIAL_HAIR, hair, UNPAINTED)
        + _part("accessory", identity.accessory, ACCESSORY, LINE, UNPAINTED)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" '
        f'viewBox="{left} {top} {side} {side}">'
        + _part(kind, view.body, (0, 0), LINE, CLOTHING[view.clothing])
        + f'<g transform="translate({HEAD[0]} {HEAD[1]})">{head}</g></svg>'
    )


def _part(kind: str, name: str, at: tuple[int, int], ink: str, paper: str) -> str:
    drawing = parts()[kind][name].replace(INK, ink).replace(PAPER, paper)
    return f'<g transform="translate({at[0]} {at[1]})">{drawing}</g>'


def render(identity: Identity, view: View, size: int, background: str | None = None) -> np.ndarray:
    """uint8 [size, size, 4], alpha the mask; or [size, size, 3] over `background` (#rrggbb).

    The view's own ground is not drawn: see `picture`.
    """
    png = resvg_py.svg_to_bytes(svg_string=svg(identity, view, size), skip_system_fonts=True)
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGBA"))
    return pixels if background is None else over(pixels, background)


def over(pixels: np.ndarray, background: str) -> np.ndarray:
    """uint8 [..., 4] on a ground of one colour (#rrggbb): [..., 3]."""
    ground = np.frombuffer(bytes.fromhex(background.removeprefix("#")), np.uint8)
    colour, alpha = pixels[..., :3].astype(np.uint32), pixels[..., 3:].astype(np.uint32)
    return ((colour * alpha + ground * (255 - alpha) + 127) // 255).astype(np.uint8)


def picture(identity: Identity, view: View, size: int) -> np.ndarray:
    """uint8 [size, size, 3] on the view's ground."""
    return render(identity, view, size, GROUND[view.ground])


def head_box(body: str, size: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of the head in a picture of [size, size]."""
    return pixel_box(HEAD_BOX, body_kind(body), size)


def focus_boxes(kind: str, size: int) -> list[tuple[int, int, int, int]]:
    """Head and face, which say who somebody is and what is felt, as boxes of pixels."""
    return [pixel_box(box, kind, size) for box in (HEAD_BOX, FACE_BOX)]


def pixel_box(box: tuple[int, int, int, int], kind: str, size: int) -> tuple[int, int, int, int]:
    """A box in the drawings' units as the pixels it touches, in a view of this kind."""
    left, top, side = VIEW_BOXES[kind]
    scale = size / side
    x0, y0, x1, y1 = box
    return (
        max(0, floor((x0 - left) * scale)),
        max(0, floor((y0 - top) * scale)),
        min(size, ceil((x1 - left) * scale)),
        min(size, ceil((y1 - top) * scale)),
    )
