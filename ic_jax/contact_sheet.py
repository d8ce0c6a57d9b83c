"""Contact sheet: pictures in rows under headings, with texts between them, large enough to see."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Cell = Image.Image | str | None
MARGIN = 8  # pixels
SMALL, LARGE = 256, 512  # least and most pixels of a picture's longer side
LARGEST = 16_000  # pixels of a sheet's side, on which pictures are made smaller; WebP has 16 383


def draw_sheet(
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    side: int | None = None,
    legend: Sequence[str] = (),
) -> Image.Image:
    """Draw a sheet of pictures and texts.

    Args:
        headings: one for each column.
        rows: a picture, a text or nothing for each column. A column holds either pictures or texts.
        side: pixels of the longer side of each picture; by default `shown_side` of the largest.
        legend: paragraphs below the sheet, over its whole width.
    """
    pictures = [cell for row in rows for cell in row if isinstance(cell, Image.Image)]
    is_text = [any(isinstance(row[i], str) for row in rows) for i in range(len(headings))]
    side = side or shown_side(max((max(picture.size) for picture in pictures), default=SMALL))
    while max(_size(side, is_text, len(rows))) > LARGEST and side > 1:
        side = side * 3 // 4
    text, widths = _text_height(side), _widths(side, is_text)
    font, top = ImageFont.load_default(text), 2 * text
    lefts = np.cumsum([MARGIN, *(width + MARGIN for width in widths)]).tolist()
    sheet = Image.new("RGB", _size(side, is_text, len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for left, width, heading in zip(lefts[:-1], widths, headings, strict=True):
        words = textwrap.shorten(heading, max(width * 2 // text, 4), placeholder="...")
        pen.text((left, text // 2), words, fill="black", font=font)
    for y, row in zip(range(top, sheet.height, side + MARGIN), rows, strict=True):
        for left, width, cell in zip(lefts[:-1], widths, row, strict=True):
            if isinstance(cell, Image.Image):
                fitted = _fitted(cell, side)
                sheet.paste(fitted, (left + (side - fitted.width) // 2, y))
            elif cell is not None:
                words = _wrapped(cell, width - MARGIN, side, text)
                middle = (left, y + side // 2)
                pen.multiline_text(middle, words, "black", font, spacing=4, anchor="lm")
    return _with_legend(sheet, legend, text) if legend else sheet


def _with_legend(sheet: Image.Image, legend: Sequence[str], text: int) -> Image.Image:
    """Return a sheet with paragraphs below it, in letters of `text` pixels."""
    most = sheet.width // text  # lines: as much as a square has
    words = _wrapped("\n".join(legend), sheet.width - 2 * MARGIN, most * (text + 6), text)
    font, place = ImageFont.load_default(text), (MARGIN, sheet.height)
    pen = ImageDraw.Draw(sheet)
    below = pen.multiline_textbbox(place, words, font, spacing=4)[3]
    longer = Image.new("RGB", (sheet.width, math.ceil(below) + MARGIN), "white")
    longer.paste(sheet)
    ImageDraw.Draw(longer).multiline_text(place, words, "black", font, spacing=4)
    return longer


def shown_side(side: int) -> int:
    """Return the side at which a picture is shown: a multiple of a small one's, less of a large."""
    return min(side * math.ceil(SMALL / side), LARGE) if side < SMALL else min(side, LARGE)


def _text_height(side: int) -> int:
    return max(10, side // 13)


def _widths(side: int, is_text: Sequence[bool]) -> list[int]:
    return [16 * _text_height(side) if texts else side for texts in is_text]


def _size(side: int, is_text: Sequence[bool], rows: int) -> tuple[int, int]:
    width = sum(width + MARGIN for width in _widths(side, is_text)) + MARGIN
    return width, 2 * _text_height(side) + rows * (side + MARGIN)


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = [max(round(length * scale), 1) for length in picture.size]
    return picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _wrapped(text: str, width: int, height: int, line: int) -> str:
    """Break each line of a text to `width` pixels, and cut it to `height` of lines of `line`."""
    font = ImageFont.load_default(line)
    lines: list[str] = []
    most = max(height // (line + 6), 1)
    for part in text[: most * width].splitlines():
        for characters in range(max(min(len(part), width), 1), 0, -1):
            broken = textwrap.wrap(part, characters, break_on_hyphens=False)
            if all(font.getlength(words) <= width for words in broken):
                break
        lines += broken
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], "..."])
