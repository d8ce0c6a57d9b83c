"""Contact sheets of drawn pictures.

There is a row for each prompt with its arguments, and a column for each seed. A row's label holds
the prompt and the arguments that differ between the rows.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ic_jax import cli
from ic_jax.cli import say
from ic_jax.contact_sheet import SMALL, Cell, draw_sheet, shown_side
from ic_jax.preprocessing.images import ImageError, read_rgb
from ic_jax.version import __version__
from infer import output
from infer.from_picture import DIGESTS
from infer.output import ELSEWHERE, Job
from infer.picture_file import read_metadata

SHEET = "grid"  # key in a sheet's own metadata
SUBJECT = "subject"
# What differs without telling rows apart.
NO_LABEL = {*ELSEWHERE, "seed", "ic_jax", *DIGESTS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `grid`."""
    pictures = "pictures that `python -m infer` drew, in the order of their rows"
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", type=cli.path, help=pictures)
    out = "contact sheet to write, a .png, .jpg, .webp or .avif"
    parser.add_argument("--out", type=output.picture_path, required=True, metavar="FILE", help=out)
    cli.add_overwrite(parser, "an existing FILE")


def run(args: argparse.Namespace) -> None:
    """Write the contact sheet of the pictures that the arguments name."""
    told = [_told(file) for file in args.pictures]
    if prepare(args.out, told, overwrite=args.overwrite):
        write(args.out, args.pictures)


def prepare(out: Path, told: Sequence[dict[str, Any]], *, overwrite: bool) -> bool:
    """Return whether a sheet of the pictures that tell these arguments has yet to be written.

    Raises:
        ValueError: `out` is something else and may not be replaced, or cannot be written.
    """
    metadata = sheet_metadata(told)
    sheet = [Job("", 0, out)]
    output.prepare(sheet, lambda _: metadata)
    if overwrite or output.missing(sheet, lambda _: metadata):
        return True
    say(f"{out} already exists")
    return False


def write(out: Path, pictures: Sequence[Path]) -> None:
    """Write the contact sheet of pictures."""
    told = [_told(file) for file in pictures]
    output.save(draw(pictures, told), out, sheet_metadata(told))
    say(f"wrote {out}")


def sheet_metadata(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a sheet's own metadata: a digest of what its pictures tell."""
    kept = [{k: v for k, v in x.items() if k not in ELSEWHERE} for x in told]
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return {"ic_jax": __version__, SHEET: digest}


def draw(pictures: Sequence[Path], told: Sequence[dict[str, Any]]) -> Image.Image:
    """Draw the contact sheet of pictures, each with what it tells about itself."""
    rows: dict[str, dict[int, Path]] = {}  # by arguments and seed
    arguments: dict[str, dict[str, Any]] = {}
    for file, x in zip(pictures, told, strict=True):
        shown = {name: value for name, value in x.items() if name not in NO_LABEL}
        key = json.dumps(shown, sort_keys=True)
        arguments[key] = shown
        rows.setdefault(key, {})[x["seed"]] = file
    seeds = list(dict.fromkeys(x["seed"] for x in told))
    subjects = {key: _subject(shown) for key, shown in arguments.items()}
    has_subjects = any(subjects.values())
    labels = _labels(list(arguments.values()))
    headings = ["subject"] * has_subjects + ["prompt", *(f"seed {seed}" for seed in seeds)]
    cells: list[list[Cell]] = []
    side = SMALL
    for (key, files), label in zip(rows.items(), labels, strict=True):
        subject: list[Cell] = [subjects[key]] if has_subjects else []
        drawn = [_opened(files[seed]) if seed in files else None for seed in seeds]
        cells.append([*subject, label, *drawn])
        side = max(side, *(shown_side(max(x.size)) for x in drawn if x is not None))
    return draw_sheet(headings, cells, side=side)


def _labels(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return each row's prompt, and the other arguments that not all rows have the same."""
    names = dict.fromkeys(name for row in rows for name in row)
    shown = (name for name in names if name not in ("prompt", SUBJECT))
    differ = [name for name in shown if any(row.get(name) != rows[0].get(name) for row in rows)]
    return [
        "\n".join([row["prompt"] or "(no prompt)", *(f"{name} {row.get(name)}" for name in differ)])
        for row in rows
    ]


def _subject(shown: dict[str, Any]) -> Image.Image | None:
    """Return the reference picture, if it is still where it was."""
    if not isinstance(shown.get(SUBJECT), str):
        return None
    try:
        return _opened(Path(shown[SUBJECT]))
    except ImageError:
        return None


def _opened(file: Path) -> Image.Image:
    return Image.fromarray(read_rgb(file))


def _told(file: Path) -> dict[str, Any]:
    """Return what a picture tells; ValueError if that is not enough for a sheet."""
    told = read_metadata(file)
    if told is None or type(told.get("prompt")) is not str or type(told.get("seed")) is not int:
        raise ValueError(f"{file} does not tell its prompt and seed; give pictures of `infer`")
    return told
