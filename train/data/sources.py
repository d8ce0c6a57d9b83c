"""What people bring: a folder of pictures, or JSON Lines that name them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from train.data.errors import DataError
from train.data.focus import Box

LINES = "metadata.jsonl"
SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tga", ".tif"}
SUFFIXES |= {".tiff", ".webp"}


class Entry(NamedTuple):
    """One picture of one character; the files are relative to the source's root."""

    file: str
    caption: str
    character: str
    mask: str = ""
    view: str = ""
    style: str = ""
    focus: tuple[Box, ...] = ()  # in pixels of the upright picture


class Rejected(NamedTuple):
    """A picture, or a line that should name one, that cannot be used."""

    file: str
    reason: str


class PictureSource(NamedTuple):
    """What a folder or JSONL file names. Nothing of the pictures has been read."""

    root: Path
    entries: list[Entry]
    bad: list[Rejected]


def read_source(path: Path) -> PictureSource:
    """Find the pictures of a source.

    Args:
        path: JSON Lines with the fields of `Entry`, `file`, `caption` and `character` required,
            others ignored; or a folder. In a folder, the first sub-folder is the character, a
            picture at the top is a character of its own, and the caption is in a .txt of the
            same stem. A `metadata.jsonl` names the pictures below the folder that it lies in,
            all that are taken there; in a sub-folder it may leave out `character`.

    Raises:
        FileNotFoundError: there is no such path.
        DataError: it names no picture at all.
    """
    if not path.exists():
        raise FileNotFoundError(2, "there is no such folder or file", str(path))
    root = path if path.is_dir() else path.parent
    found = _in_folder(root) if path.is_dir() else _in_lines(path, root, "")
    entries: dict[str, Entry] = {}
    bad: list[Rejected] = []
    for item in found:
        if isinstance(item, Rejected):
            bad.append(item)
        elif item.file in entries:
            bad.append(Rejected(item.file, "is named twice; the first is taken"))
        else:
            entries[item.file] = item
    if not entries and not bad:
        raise DataError(f"{path}: names no picture; expected {', '.join(sorted(SUFFIXES))}")
    return PictureSource(root, list(entries.values()), bad)


def _in_folder(root: Path) -> Iterator[Entry | Rejected]:
    lines = sorted(root.rglob(LINES))
    for path in lines:
        yield from _in_lines(path, root, _character(path, root))
    named = {path.parent for path in lines}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not named.isdisjoint(path.parents):
            continue
        file = path.relative_to(root).as_posix()
        caption = path.with_suffix(".txt")
        try:
            entry = Entry(file, caption.read_text().strip(), _character(path, root))
            yield _checked(entry)
        except FileNotFoundError:
            yield Rejected(file, f"has no caption; write one into {caption.name} beside it")
        except ValueError as error:
            yield Rejected(file, str(error))


def _character(path: Path, root: Path) -> str:
    parts = path.relative_to(root).parts
    if path.name == LINES:
        return parts[0] if len(parts) > 1 else ""
    return parts[0] if len(parts) > 1 else path.stem


def _in_lines(path: Path, root: Path, character: str) -> Iterator[Entry | Rejected]:
    folder = path.parent.relative_to(root)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield _entry(json.loads(line), folder, character)
            except ValueError as error:
                yield Rejected(f"{path.name} line {number}", " ".join(str(error).split()))


def _entry(fields: Any, folder: Path, character: str) -> Entry:
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object; expected fields file, caption and character")
    given: dict[str, Any] = {"character": character}
    for name in Entry._fields:
        value = fields.get(name)
        if value is None:
            continue
        if name == "focus":
            given[name] = _boxes(value)
            continue
        if name == "character" and isinstance(value, int):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}; expected a string")
        given[name] = value.strip()
    for name in ("file", "caption"):
        if name not in given:
            raise ValueError(f"has no {name}")
    for name in ("file", "mask"):
        if given.get(name):
            given[name] = (folder / given[name]).as_posix()
    return _checked(Entry(**given))


def _boxes(value: Any) -> tuple[Box, ...]:
    expected = "expected a list of boxes, each [left, top, right, bottom] in pixels"
    if not isinstance(value, list):
        raise ValueError(f"focus is {value!r}; {expected}")
    for box in value:
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise ValueError(f"focus has {box!r}; {expected}")
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(f"focus has {box!r}, which is empty; {expected}")
    return tuple(map(tuple, value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _checked(entry: Entry) -> Entry:
    if not entry.file or not entry.character:
        raise ValueError(f"{'character' if entry.file else 'file'} is empty")
    for name, value in entry._asdict().items():
        if not isinstance(value, str):
            continue
        if not value.isprintable() and name != "caption":
            raise ValueError(f"{name} has control characters")
        value.encode()  # a lone surrogate, which JSON can spell, is no text
    return entry
