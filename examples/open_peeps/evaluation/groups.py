"""Groups of held-out people in one picture, each confined to a region by the image prompt.

The bundled model was trained on squares of one person. A picture of k people is k squares wide, and
each person's region is a square, which is judged as the picture of a single person. All of a group
are asked for in one view, since the model knows no words for places.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageColor

from examples.open_peeps.evaluation import generation
from examples.open_peeps.evaluation.measure import blurred, nearest
from examples.open_peeps.evaluation.triples import CANDIDATES, Triple, held_out_triples
from examples.open_peeps.world.palette import GROUND
from examples.open_peeps.world.render import Identity, head_box, picture
from ic_jax import InstantCharacterPipeline, SubjectPrompt
from ic_jax.cli import say
from ic_jax.contact_sheet import Cell, draw_sheet
from train.workers import parallel_map

NAMES = ("alone", "two", "three")  # of groups, by size
LARGEST, SHOWN = len(NAMES), 8  # people in a group; groups on a contact sheet


class Group(NamedTuple):
    """People to draw beside each other, from left to right, all in the view of the first."""

    people: tuple[Triple, ...]

    @property
    def prompt(self) -> str:
        """The first person's prompt, which tells nothing of anybody's identity."""
        return self.people[0].prompt

    @property
    def reference(self) -> UInt8[np.ndarray, "h w 3"]:
        """The first person's."""
        return self.people[0].reference

    def candidates(self, place: int) -> list[Identity]:
        """Return the right person, then the others of the group, then people of no group."""
        members = [triple.identity for triple in self.people]
        members.insert(0, members.pop(place))
        others = [x for x in self.people[place].others if x not in members]
        return [*members, *others][:CANDIDATES]


def held_out_groups(count: int, size: int) -> list[Group]:
    """Return `count` groups; the first person of the nth is the same for every size."""
    everyone = held_out_triples("peeps", "known parts", LARGEST * count)
    return [Group(tuple(everyone[n + k * count] for k in range(size))) for n in range(count)]


def evaluate(
    pipe: InstantCharacterPipeline, count: int, folder: Path, largest: int
) -> dict[str, Any]:
    """Generate `count` pictures each of one, two, ... and `largest` people; return the rates.

    Writes a contact sheet of the first groups of each size, not chosen, to `folder`.
    """
    results = {}
    for size, name in enumerate(NAMES[:largest], 1):
        chosen = held_out_groups(count, size)
        rows = {"in regions": {"regions": True}}
        if size == 2:
            rows["without regions"] = {"regions": False}
        columns = {}
        for row, options in rows.items():
            label = f"{name}, {row}" if size > 1 else name
            columns[row] = generate(pipe, chosen, name=label, **options)
            results[label] = rates(columns[row], chosen)
            say(f"{label}: {results[label]}")
        if size > 1:
            sheet(chosen[:SHOWN], columns).save(folder / f"{name}.webp", quality=85)
    return results


def generate(
    pipe: InstantCharacterPipeline,
    groups: Sequence[Group],
    *,
    name: str,
    regions: bool = True,
) -> Float[np.ndarray, "n h w 3"]:
    """Generate a picture of each group, with the seeds 0, 1, 2, ...

    Args:
        name: label of the progress bar.
        regions: whether each person has a region, of equal widths from left to right.
    """
    size = len(groups[0].people)
    places = [(k / size, 0.0, (k + 1) / size, 1.0) if regions else None for k in range(size)]

    def subjects(group: Group) -> list[SubjectPrompt]:
        people = zip(group.people, places, strict=True)
        return [SubjectPrompt(triple.reference, region=place) for triple, place in people]

    width = size * pipe.sampling.height
    return generation.generate(pipe, groups, 0, name=name, subjects=subjects, width=width)


def rates(pictures: Float[np.ndarray, "n h w 3"], groups: Sequence[Group]) -> dict[str, Any]:
    """Return how often each is recognised in their square, and how often somebody is not."""
    answers = list(parallel_map(_read, list(pictures), groups, chunk=4))
    recognised = np.array([[answer == "right" for answer in row] for row in answers])
    return {
        "pictures": len(groups),
        "identity": round(float(recognised.mean()), 4),
        "identity by place": [round(float(x), 4) for x in recognised.mean(0)],
        "a person lost": round(float((~recognised.all(1)).mean()), 4),
        "nobody there": round(float(np.mean([[a == "nobody" for a in row] for row in answers])), 4),
        "another of the group": round(
            float(np.mean([[a == "another" for a in row] for row in answers])), 4
        ),
    }


def _read(image: Float[np.ndarray, "h w 3"], group: Group) -> list[str]:
    """Return for each square who is there: "right", "another" of the group, "else" or "nobody"."""
    side = len(image)
    squares = [image[None, :, k * side : (k + 1) * side] for k in range(len(group.people))]
    return [_who(square, group, place) for place, square in enumerate(squares)]


def _who(square: Float[np.ndarray, "1 h h 3"], group: Group, place: int) -> str:
    side, view = square.shape[1], group.people[0].view
    candidates = group.candidates(place)
    renders = np.stack([picture(person, view, side) for person in candidates])
    bare = np.zeros_like(renders[:1])
    bare[:] = ImageColor.getrgb(GROUND[view.ground])
    everything = (0, 0, side, side)
    both = blurred(np.concatenate([renders[:1], bare]), everything)
    if nearest(blurred(square, everything), both) == [1]:
        return "nobody"
    box = head_box(view.body, side)
    (answer,) = nearest(blurred(square, box), blurred(renders, box))
    if answer == 0:
        return "right"
    return "another" if answer < len(group.people) else "else"


def sheet(groups: Sequence[Group], columns: dict[str, np.ndarray]) -> Image.Image:
    """Draw the contact sheet of groups: references, prompt, and the columns' pictures."""
    cells: list[list[Cell]] = []
    for row, group in enumerate(groups):
        references = [
            Image.fromarray(picture(t.identity, replace(t.reference_view, ground="white"), 96))
            for t in group.people
        ]
        drawn = [np.round(255 * pictures[row]).astype(np.uint8) for pictures in columns.values()]
        cells.append([*references, group.prompt, *map(Image.fromarray, drawn)])
    names = ["reference"] * len(groups[0].people)
    return draw_sheet([*names, "prompt", *columns], cells, side=288)
