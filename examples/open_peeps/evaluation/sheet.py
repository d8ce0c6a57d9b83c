"""Contact sheet: one row for each triple with its reference, prompt, pictures and true render."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.open_peeps.evaluation.generation import Pictures
from examples.open_peeps.evaluation.triples import Triple
from examples.open_peeps.world.render import picture

MARGIN = 8  # pixels
FONT = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    triples: Sequence[Triple], columns: Mapping[str, Pictures], *, cell: int = 128, text: int = 10
) -> Image.Image:
    """Draw the sheet.

    Args:
        columns: pictures by the heading of their column.
        cell: side of a picture in pixels.
        text: height of the font in pixels.
    """
    font = ImageFont.load_default(text)
    headings = ["reference", "prompt", *columns, "true render"]
    prompt_width = 18 * text
    widths = [prompt_width if heading == "prompt" else cell for heading in headings]
    lefts = np.cumsum([MARGIN, *(width + MARGIN for width in widths)]).tolist()
    top = 2 * text
    size = lefts[-1], top + len(triples) * (cell + MARGIN)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for left, heading in zip(lefts[:-1], headings, strict=True):
        pen.text((left, text // 2), heading[:20], fill="black", font=font)
        for row, triple in enumerate(triples):
            at = left, top + row * (cell + MARGIN)
            if heading == "prompt":
                words = _wrapped(triple.prompt, prompt_width - MARGIN, font)
                middle = at[1] + cell // 2
                pen.multiline_text(
                    (left, middle), words, fill="black", font=font, spacing=4, anchor="lm"
                )
            else:
                sheet.paste(_cell(heading, triple, columns, row, cell), at)
    return sheet


def _wrapped(words: str, width: int, font: FONT) -> str:
    """Break the text into as long lines as fit into `width` pixels."""
    for characters in range(len(words), 0, -1):
        text = textwrap.fill(words, characters, break_on_hyphens=False)
        if all(font.getlength(line) <= width for line in text.splitlines()):
            return text
    return words


def _cell(
    heading: str, triple: Triple, columns: Mapping[str, Pictures], row: int, side: int
) -> Image.Image:
    match heading:
        case "reference":
            pixels = picture(triple.identity, triple.reference_view, side)
        case "true render":
            pixels = picture(triple.identity, triple.view, side)
        case _:
            pixels = np.round(255 * columns[heading][row]).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
