"""Contact sheet of a preview: a row for each reference, a column for each prompt, and a legend."""

import textwrap
from dataclasses import dataclass
from string import ascii_uppercase

from PIL import Image, ImageDraw, ImageFont

MARGIN = 4  # pixels
WIDTH = 480  # at least, of the legend
FONT = 14  # pixels


@dataclass(frozen=True)
class PreviewRow:
    """Pictures of one reference, one for each prompt; without a reference, of the prompts alone."""

    reference: Image.Image | None
    pictures: list[Image.Image]


def contact_sheet(
    rows: list[PreviewRow], side: int, facts: str, references: list[str], prompts: list[str]
) -> Image.Image:
    """Return the pictures with letters and numbers beside them, over a legend that explains these.

    Args:
        rows: of equal length.
        side: of a picture, pixels.
        facts: the legend's first line: step, seed and sampling settings.
        references: what each row's reference is.
        prompts: of each column.
    """
    named = [f"{letter}: {text}" for letter, text in zip(_letters(), references, strict=False)]
    named += [f"{i}: {text or 'the empty prompt'}" for i, text in enumerate(prompts, 1)]
    font = ImageFont.load_default(FONT)
    cell, edge = side + MARGIN, FONT + 2 * MARGIN
    columns = len(prompts) + bool(references)
    width = max(WIDTH, edge + cell * columns + MARGIN)
    letters = int((width - 2 * MARGIN) / (0.55 * FONT))
    legend = [part for text in (facts, *named) for part in textwrap.wrap(text, letters) or [""]]
    top = edge + cell * len(rows)
    height = top + (FONT + MARGIN) * len(legend) + 2 * MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (row, letter) in enumerate(zip(rows, _letters(), strict=False)):
        first = [row.reference] if row.reference else []
        for x, picture in enumerate([*first, *row.pictures]):
            fitted = picture.copy()
            fitted.thumbnail((side, side))
            sheet.paste(fitted, (edge + x * cell, edge + y * cell))
        if references:
            draw.text((MARGIN, edge + y * cell), letter, "black", font)
    for x in range(len(prompts)):
        left = edge + (x + bool(references)) * cell
        draw.text((left, MARGIN), str(x + 1), "black", font)
    for i, text in enumerate(legend):
        draw.text((MARGIN, top + MARGIN + i * (FONT + MARGIN)), text, "black", font)
    return sheet


def _letters() -> list[str]:
    return [*ascii_uppercase, *(a + b for a in ascii_uppercase for b in ascii_uppercase)]
