"""A contact sheet: reference, prompt, what each stage drew, and the true render."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from experiments.characters import Triple
from train.foundations.world import caption
from train.peeps.render import picture

CELL, TEXT, MARGIN, HEADING = 128, 200, 8, 20  # pixels


def draw(asked: Sequence[Triple], drawn: dict[str, np.ndarray]) -> Image.Image:
    """One row for each triple; `drawn` holds float pictures in 0..1 by column."""
    columns = ["reference", "prompt", *drawn, "true render"]
    lefts = np.cumsum([0] + [(TEXT if c == "prompt" else CELL) + MARGIN for c in columns])
    size = (int(lefts[-1]) + MARGIN, HEADING + len(asked) * (CELL + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for left, column in zip(lefts[:-1], columns, strict=True):
        pen.text((int(left) + MARGIN, 4), column, fill="black")
        for row, one in enumerate(asked):
            at = (int(left) + MARGIN, HEADING + row * (CELL + MARGIN))
            if column == "prompt":
                words = textwrap.fill(caption(one.view), 30, break_on_hyphens=False)
                pen.multiline_text((at[0], at[1] + 40), words, fill="black", spacing=4)
                continue
            sheet.paste(_cell(column, one, drawn, row), at)
    return sheet


def _cell(column: str, one: Triple, drawn: dict[str, np.ndarray], row: int) -> Image.Image:
    match column:
        case "reference":
            pixels = picture(one.identity, one.seen, CELL)
        case "true render":
            pixels = picture(one.identity, one.view, CELL)
        case _:
            pixels = np.round(255 * drawn[column][row]).astype(np.uint8)
    return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)
