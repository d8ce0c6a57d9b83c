"""Contact sheet: one row for each triple with its reference, prompt, pictures and true render."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from examples.open_peeps.evaluation.generation import Pictures
from examples.open_peeps.evaluation.triples import Triple
from examples.open_peeps.world.render import picture
from ic_jax.contact_sheet import Cell, draw_sheet


def contact_sheet(
    triples: Sequence[Triple], columns: Mapping[str, Pictures], *, cell: int = 128
) -> Image.Image:
    """Draw the sheet.

    Args:
        columns: pictures by the heading of their column.
        cell: side of a picture in pixels.
    """
    rows: list[list[Cell]] = []
    for row, triple in enumerate(triples):
        reference, truth = (
            Image.fromarray(picture(triple.identity, view, cell))
            for view in (triple.reference_view, triple.view)
        )
        drawn = [np.round(255 * pictures[row]).astype(np.uint8) for pictures in columns.values()]
        rows.append([reference, triple.prompt, *map(Image.fromarray, drawn), truth])
    headings = ["reference", "prompt", *columns, "true render"]
    return draw_sheet(headings, rows, side=cell)
