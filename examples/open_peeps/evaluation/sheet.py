"""A contact sheet: reference, prompt, the rows' pictures, and the true render."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from examples.open_peeps.evaluation.drawing import Pictures
from examples.open_peeps.evaluation.triples import Triple
from examples.open_peeps.world.render import picture

CELL, TEXT, MARGIN, HEADING = 128, 220, 8, 20  # pixels


def sheet(asked: Sequence[Triple], drawn: Mapping[str, Pictures]) -> Image.Image:
    """One line for each triple; `drawn` holds pictures by column."""
    columns = ["reference", "prompt", *drawn, "true render"]
    lefts = np.cumsum([0] + [(TEXT if c == "prompt" else CELL) + MARGIN for c in columns])
    size = (int(lefts[-1]) + MARGIN, HEADING + len(asked) * (CELL + MARGIN) + MARGIN)
    whole = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(whole)
    for left, column in zip(lefts[:-1], columns, strict=True):
        pen.text((int(left) + MARGIN, 4), column[:20], fill="black")
        for row, one in enumerate(asked):
            at = (int(left) + MARGIN, HEADING + row * (CELL + MARGIN))
            if column == "prompt":
                words = textwrap.fill(one.prompt, 34, break_on_hyphens=False)
                pen.multiline_text((at[0], at[1] + 20), words, fill="black", spacing=4)
                continue
            whole.paste(_cell(column, one, drawn, row), at)
    return whole


def _cell(column: str, one: Triple, drawn: Mapping[str, Pictures], row: int) -> Image.Image:
    match column:
        case "reference":
            pixels = picture(one.identity, one.seen, CELL)
        case "true render":
            pixels = picture(one.identity, one.view, CELL)
        case _:
            pixels = np.round(255 * drawn[column][row]).astype(np.uint8)
    return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)
