"""Rows of lists and tables: their fields, by the names that people give them, as entries."""

import difflib
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ic_jax.from_dict import nearest
from ic_jax.untrusted_files import files_below, parse_json
from train.data.boxes import Box
from train.data.errors import DataError
from train.data.focus import check_boxes
from train.data.sources.entries import Entry, Part, SourceOptions, check
from train.data.sources.walk import boundary
from train.data.subject_boxes import SubjectBox, check_subjects, put_first

# Of several names that a row has for one field, the first is taken.
NAMES = {
    "file": ("file", "file_name", "filename", "image", "image_path", "path"),
    "caption": ("caption", "text", "prompt", "tags"),
    "character": ("character", "subject", "identity", "label"),
    "mask": ("mask", "mask_file_name"),
    "view": ("view",),
    "style": ("style",),
    "focus": ("focus",),
    "subjects": ("subjects",),
}
KNOWN = frozenset(name for names in NAMES.values() for name in names)
# Folders that divide or hold a data set, and name no character.
GENERAL = frozenset(
    {"data", "image", "images", "img", "pictures"}
    | {"test", "train", "training", "val", "valid", "validation"}
)
REPEATS = re.compile(r"\d{1,3}_(.+)")  # kohya's "10_name class": ten times an epoch


def character_of(file: str) -> str:
    """Return the character that the folders of a file name, "" if there is none."""
    folders = list(PurePosixPath(file).parent.parts)
    while folders and folders[0].lower() in GENERAL:
        del folders[0]
    return folders[0] if folders else ""


def without_repeats(characters: set[str]) -> dict[str, str]:
    """Return the names of kohya's folders without the number of repeats.

    Folders that would become one character keep their names: they may as well be numbered.
    """
    short = {name: match[1] for name in characters if (match := REPEATS.fullmatch(name))}
    taken = [short.get(name, name) for name in characters]
    return {name: less for name, less in short.items() if taken.count(less) == 1}


class RowReader:
    """Reader of the rows of one list or table.

    Attributes:
        unknown: keys that no field has; they are passed over.
    """

    def __init__(self, root: Path, listing: str, options: SourceOptions) -> None:
        """Read rows of the file `listing`, which is relative to `root`, as are its pictures."""
        self._root, self._listing, self._options = root, listing, options
        self._folder = PurePosixPath(listing).parent
        self._inside = boundary(root)
        self._below = root.resolve().relative_to(self._inside)
        self._path_of = files_below(self._inside)
        self._names = NAMES | {"character": (options.character,)} if options.character else NAMES
        self._known = KNOWN | {options.character}
        self._keys: dict[str, None] = {}
        self._named = self._nameless = False  # of any row so far
        self.unknown: set[str] = set()

    def entry(self, fields: Any, file: str = "", parts: Mapping[str, Part] | None = None) -> Entry:
        """Return the entry of a row.

        Args:
            fields: what the row says; other types than a mapping are refused.
            file: name of the picture where it is inside another file.
            parts: picture ("file") and mask ("mask") inside another file.

        Raises:
            ValueError: the row cannot be used; the message gives the reason alone.
        """
        if not isinstance(fields, Mapping):
            raise ValueError("is not a JSON object; expected fields file, caption and character")
        self._keys |= dict.fromkeys(map(str, fields))
        self.unknown |= {k for k in map(str, fields) if k not in self._known and k[:2] != "__"}
        parts = parts or {}
        values = {
            name: _value(name, fields[key])
            for name, keys in self._names.items()
            if name not in parts
            for key in [next((k for k in keys if fields.get(k) is not None), None)]
            if key is not None
        }
        for name in ("file", "mask"):
            if values.get(name):
                values[name] = self._file(values[name])
        if "file" in parts:
            values["file"] = file
        values |= {"part": parts.get("file"), "mask_part": parts.get("mask")}
        self._order_subjects(values)
        self._named |= bool(values.get("character"))  # in a row that lacks another field, too
        self._require(values)
        return check(Entry(**values))

    def check_named(self) -> None:
        """Raise DataError if no row at all named a character."""
        if self._named or not self._nameless:
            return
        known, keys = self._options.character, ", ".join(list(self._keys)[:20])
        near = difflib.get_close_matches(known or "character", self._keys, n=1)
        raise DataError(
            f"{self._root / self._listing}: no row names its character by "
            f"{known or ', '.join(NAMES['character'])}; the keys are {keys}. Name "
            f"one with --character {near[0] if near else 'KEY'}, or give --character folder where "
            "each folder is a character, or --character file where each picture is one"
        )

    def _file(self, name: str) -> str:
        """Return the path from the root of a file that a row names."""
        file = str(self._folder / name)
        path = self._path_of(str(self._below / file))
        if not PurePosixPath(name).is_absolute():
            return file
        root = self._inside / self._below  # `datasets` names files by their whole path
        return path.resolve().relative_to(root).as_posix()

    def _order_subjects(self, values: dict[str, Any]) -> None:
        """Name the character by the first subject, or put the subject that it names first."""
        if not values.get("subjects"):
            return
        if self._options.character == "file":
            values["subjects"] = ()  # whoever they are, the picture is a character of its own
            return
        if self._options.character == "folder":
            values["character"] = self._character(values)
        character = values.get("character") or values["subjects"][0].character
        values["character"] = character
        values["subjects"] = put_first(values["subjects"], character)

    def _require(self, values: dict[str, Any]) -> None:
        for name in ("file", "caption"):
            if name == "caption" and not self._options.captioned:
                values.setdefault(name, "")
            if name not in values:
                raise ValueError(f"has no {name}{self._misspelt(name)}")
        if not values["file"]:
            raise ValueError("file is empty")
        if not values.get("character"):
            values["character"] = self._character(values)
        if not values["character"]:
            self._nameless = True
            raise ValueError(f"character is empty{self._misspelt('character')}")
        self._named = True

    def _character(self, values: dict[str, Any]) -> str:
        part = values["part"]
        match self._options.character:
            case "file":
                return values["file"]
            case "folder":
                return character_of(part.name if part else values["file"])
        return (character_of(part.name) if part else "") or character_of(self._listing)

    def _misspelt(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.unknown, n=1)
        return f"; {near[0]!r} is not known{nearest(near[0], list(KNOWN))}" if near else ""


def _value(name: str, value: Any) -> Any:
    if name in ("focus", "subjects"):
        return _boxes(name, value)
    if name == "character" and isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {reprlib.repr(value)}; expected a string")
    return value.strip()


def _boxes(name: str, value: Any) -> tuple[Box, ...] | tuple[SubjectBox, ...]:
    if isinstance(value, str) and value[:1] == "[":  # of a CSV
        value = parse_json(value, name)
    if name == "focus":
        return check_boxes(value) if value != "" else ()
    # Others use the word for texts and lists of texts, which have no boxes.
    boxes = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
    return check_subjects(value) if boxes else ()
