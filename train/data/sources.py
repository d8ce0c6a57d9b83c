"""Sources of a data set: a folder of pictures, or a JSON Lines file that lists them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ic_jax.text_files import lines_of, read_text
from train.data.errors import DataError
from train.data.focus import Box

LINES = "metadata.jsonl"
SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tga", ".tif"}
SUFFIXES |= {".tiff", ".webp"}


class Entry(NamedTuple):
    """One picture of one character; `file` and `mask` are relative to the root of the source."""

    file: str
    caption: str
    character: str
    mask: str = ""
    view: str = ""
    style: str = ""
    focus: tuple[Box, ...] = ()  # pixels of the upright picture


class Rejected(NamedTuple):
    """Unusable picture, or unusable line of a JSON Lines file, with the reason."""

    file: str
    reason: str


class PictureSource(NamedTuple):
    """Pictures that a folder or JSON Lines file lists; the pictures are not read yet."""

    root: Path
    entries: list[Entry]
    rejected: list[Rejected]


def read_source(path: Path) -> PictureSource:
    """List the pictures of a source.

    Args:
        path: JSON Lines file or folder. A line has the fields of `Entry`, of which `file`,
            `caption` and `character` are required; other fields are ignored. In a folder, the
            name of the first sub-folder is the character, a picture at the top is a character of
            its own, and the caption is in a .txt file of the same stem. A `metadata.jsonl` lists
            the pictures below its own folder, where no others are taken; in a sub-folder it may
            leave out `character`.

    Raises:
        FileNotFoundError: there is no such path.
        DataError: the source lists no picture.
    """
    if not path.exists():
        raise FileNotFoundError(2, "there is no such folder or file", str(path))
    root = path if path.is_dir() else path.parent
    entries: dict[str, Entry] = {}
    rejected: list[Rejected] = []
    for item in _read_folder(root) if path.is_dir() else _read_lines(path, root, ""):
        if isinstance(item, Rejected):
            rejected.append(item)
        elif item.file in entries:
            rejected.append(Rejected(item.file, "is listed twice; the first is taken"))
        else:
            entries[item.file] = item
    if not entries and not rejected:
        raise DataError(f"{path}: lists no picture; expected {', '.join(sorted(SUFFIXES))}")
    return PictureSource(root, list(entries.values()), rejected)


def _read_folder(root: Path) -> Iterator[Entry | Rejected]:
    listings = sorted(root.rglob(LINES))
    for path in listings:
        yield from _read_lines(path, root, _character(path, root))
    listed = {path.parent for path in listings}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not listed.isdisjoint(path.parents):
            continue
        file = path.relative_to(root).as_posix()
        caption = path.with_suffix(".txt")
        try:
            entry = Entry(file, read_text(caption).strip(), _character(path, root))
            yield _checked(entry)
        except FileNotFoundError:
            yield Rejected(file, f"has no caption; write one into {caption.name} beside it")
        except ValueError as error:
            yield Rejected(file, str(error))


def _character(path: Path, root: Path) -> str:
    parts = path.relative_to(root).parts
    if len(parts) > 1:
        return parts[0]
    return "" if path.name == LINES else path.stem


def _read_lines(path: Path, root: Path, character: str) -> Iterator[Entry | Rejected]:
    folder = path.parent.relative_to(root)
    # What is not UTF-8 in one line does not reject the others.
    for number, line in enumerate(lines_of(read_text(path, errors="surrogateescape")), 1):
        if not line.strip():
            continue
        try:
            yield _entry(_json(line), folder, character)
        except ValueError as error:
            yield Rejected(f"{path.name} line {number}", " ".join(str(error).split()))


def _json(line: str) -> Any:
    if any("\udc80" <= character <= "\udcff" for character in line):
        raise ValueError("is not UTF-8; save the file as UTF-8")
    return json.loads(line)


def _entry(fields: Any, folder: Path, character: str) -> Entry:
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object; expected fields file, caption and character")
    values: dict[str, Any] = {"character": character}
    for name in Entry._fields:
        value = fields.get(name)
        if value is None:
            continue
        if name == "focus":
            values[name] = _checked_boxes(value)
            continue
        if name == "character" and isinstance(value, int):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}; expected a string")
        values[name] = value.strip()
    for name in ("file", "caption"):
        if name not in values:
            raise ValueError(f"has no {name}")
    for name in ("file", "mask"):
        if values.get(name):
            values[name] = (folder / values[name]).as_posix()
    return _checked(Entry(**values))


def _checked_boxes(value: Any) -> tuple[Box, ...]:
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
        value.encode()  # raises on a lone surrogate, which JSON can hold
    return entry
