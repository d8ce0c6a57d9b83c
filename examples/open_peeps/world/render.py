"""Renderer: SVG of a person in a view, assembled from parts, and its pixels by resvg."""

import gzip
import io
import json
from dataclasses import astuple, dataclass
from functools import cache
from math import ceil, floor
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from examples.open_peeps.world.extract import INK, PAPER
from examples.open_peeps.world.palette import CLOTHING, GROUND, HAIR_COLOUR, LINE, SKIN, UNPAINTED

# (left, top, side) of the square around a body in units of the drawings. Every body with every head
# fits, including tall hair (from -122) and the wheels of the bicycle.
VIEW_BOXES = {
    "bust": (-250, -130, 1350),
    "sitting": (-1050, -125, 3360),
    "standing": (-1000, -125, 3125),
}
# Position of the head, and of its parts within it, in react-peeps.
HEAD, FACE, FACIAL_HAIR, ACCESSORY = (225, 0), (159, 186), (123, 338), (47, 241)
# (left, top, right, bottom) of hair (except the longest tips), beards and glasses.
HEAD_BOX = (70, -125, 945, 710)
FACE_BOX = (415, 205, 650, 470)  # of all differences between faces


@dataclass(frozen=True)
class Names:
    """Fields with one name for files and ids, such as "Afro.None.Eyepatch.tan.ginger"."""

    def __str__(self) -> str:
        return ".".join(astuple(self))

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the fields of a name."""
        return cls(*name.split("."))


@dataclass(frozen=True)
class Identity(Names):
    """Identity of a person: names of parts and colours (examples.open_peeps.world.palette)."""

    hair: str
    facial_hair: str
    accessory: str
    skin: str
    hair_colour: str


@dataclass(frozen=True)
class View(Names):
    """View of a person: pose, expression, clothing and background, by names."""

    body: str
    face: str
    clothing: str
    ground: str


@cache
def parts() -> dict[str, dict[str, str]]:
    """Load {kind: {name: SVG}}, with INK and PAPER as colours, and "credit"."""
    return json.loads(gzip.decompress((Path(__file__).parent / "parts.json.gz").read_bytes()))


@cache
def body_kind(body: str) -> str:
    """Return the key of VIEW_BOXES of a body."""
    return next(kind for kind in VIEW_BOXES if body in parts()[kind])


def svg(identity: Identity, view: View, size: int) -> str:
    """Assemble an SVG of [size, size] pixels, without background."""
    left, top, side = VIEW_BOXES[body_kind(view.body)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" '
        f'viewBox="{left} {top} {side} {side}">{figure(identity, view)}</svg>'
    )


def figure(identity: Identity, view: View) -> str:
    """Assemble the SVG elements of a figure, in units of the drawings."""
    skin, hair = SKIN[identity.skin], HAIR_COLOUR[identity.hair_colour]
    head = (
        _part("hair", identity.hair, (0, 0), hair, skin)
        + _part("face", view.face, FACE, LINE, skin)
        + _part("facial_hair", identity.facial_hair, FACIAL_HAIR, hair, UNPAINTED)
        + _part("accessory", identity.accessory, ACCESSORY, LINE, UNPAINTED)
    )
    return (
        _part(body_kind(view.body), view.body, (0, 0), LINE, CLOTHING[view.clothing])
        + f'<g transform="translate({HEAD[0]} {HEAD[1]})">{head}</g>'
    )


def _part(kind: str, name: str, at: tuple[int, int], ink: str, paper: str) -> str:
    drawing = parts()[kind][name].replace(INK, ink).replace(PAPER, paper)
    return f'<g transform="translate({at[0]} {at[1]})">{drawing}</g>'


def render(identity: Identity, view: View, size: int, background: str | None = None) -> np.ndarray:
    """Render uint8 [size, size, 4], alpha the mask, or [size, size, 3] over `background` (#rrggbb).

    The background of the view is not drawn; `picture` draws it.
    """
    pixels = rasterize(svg(identity, view, size))
    return pixels if background is None else over(pixels, background)


def rasterize(text: str) -> UInt8[np.ndarray, "h w 4"]:
    """Return the pixels of an SVG, the last channel its alpha."""
    import resvg_py  # an extra; --help works without it

    png = resvg_py.svg_to_bytes(svg_string=text, skip_system_fonts=True)
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGBA"))


def over(pixels: np.ndarray, background: str) -> np.ndarray:
    """Blend uint8 [..., 4] over one colour (#rrggbb) to [..., 3]."""
    ground = np.frombuffer(bytes.fromhex(background.removeprefix("#")), np.uint8)
    colour, alpha = pixels[..., :3].astype(np.uint32), pixels[..., 3:].astype(np.uint32)
    return ((colour * alpha + ground * (255 - alpha) + 127) // 255).astype(np.uint8)


def picture(identity: Identity, view: View, size: int) -> np.ndarray:
    """Render uint8 [size, size, 3] over the background of the view."""
    return render(identity, view, size, GROUND[view.ground])


def head_box(body: str, size: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the head in pixels of a picture of [size, size]."""
    return pixel_box(HEAD_BOX, body_kind(body), size)


def focus_boxes(kind: str, size: int) -> list[tuple[int, int, int, int]]:
    """Return the boxes of head and face in pixels: they show identity and expression."""
    return [pixel_box(box, kind, size) for box in (HEAD_BOX, FACE_BOX)]


def pixel_box(box: tuple[int, int, int, int], kind: str, size: int) -> tuple[int, int, int, int]:
    """Convert a box from units of the drawings to the pixels it touches in a view of `kind`."""
    left, top, side = VIEW_BOXES[kind]
    scale = size / side
    x0, y0, x1, y1 = box
    return (
        max(0, floor((x0 - left) * scale)),
        max(0, floor((y0 - top) * scale)),
        min(size, ceil((x1 - left) * scale)),
        min(size, ceil((y1 - top) * scale)),
    )
