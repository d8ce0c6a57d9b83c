"""Notes on the records of a data set that its index and card are made of, as arrays.

Ten million records are arrays of one gigabyte, and several as Python objects.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8, UInt64

LOOK = 64  # bytes of a difference hash
SUMS = ("masked", "focused", "alpha")


class RecordNote(NamedTuple):
    """Properties of one record, as the notes of a finished shard have them."""

    character: str
    width: int
    height: int
    caption: int  # length in characters
    view: str
    style: str
    masked: bool
    focused: bool
    alpha: bool  # whether its own alpha channel is its mask
    stored: str  # hash of the stored file
    look: str  # see `train.data.duplicates`
    others: list[str]  # further characters of the picture


@dataclass(frozen=True)
class RecordNotes:
    """Notes on many records: a column for each property that the index or a comparison needs.

    Attributes:
        characters: names of the characters, those of `others` included.
        character: index of each record's into them.
        width: of each record in pixels, as `height`.
        caption: length of each caption in characters.
        stored: hash of each stored file.
        others: record number, and index of a further character of its picture, ascending.
        look: hash of what each picture looks like (`train.data.duplicates`).
        views: number of records of each view, in the order of their first; so `styles`.
        masked: number of records with a separate mask.
        focused: number of records with focus boxes.
        alpha: number of records whose own alpha channel is their mask.
    """

    characters: Sequence[str]
    character: Int32[np.ndarray, "n"]
    width: Int32[np.ndarray, "n"]
    height: Int32[np.ndarray, "n"]
    caption: Int32[np.ndarray, "n"]
    stored: UInt64[np.ndarray, "n"]
    look: UInt8[np.ndarray, "n 64"]
    others: Int32[np.ndarray, "m 2"]
    views: Counter[str]
    styles: Counter[str]
    masked: int
    focused: int
    alpha: int

    def __len__(self) -> int:
        return len(self.character)

    @classmethod
    def of(cls, notes: Sequence[RecordNote]) -> "RecordNotes":
        """Return the columns of single notes."""
        names = dict.fromkeys(name for x in notes for name in (x.character, *x.others))
        number = {name: n for n, name in enumerate(names)}
        others = [(n, number[name]) for n, x in enumerate(notes) for name in x.others]
        looks = b"".join(bytes.fromhex(note.look) for note in notes)
        columns: dict[str, Any] = {
            "characters": list(number),
            "character": np.array([number[note.character] for note in notes], np.int32),
            "stored": np.array([int(note.stored, 16) for note in notes], np.uint64),
            "look": np.frombuffer(looks, np.uint8).reshape(len(notes), LOOK),
            "others": np.array(others, np.int32).reshape(-1, 2),
        }
        for name in ("width", "height", "caption"):
            columns[name] = np.array([getattr(note, name) for note in notes], np.int32)
        for name, label in (("views", "view"), ("styles", "style")):
            columns[name] = Counter(filter(None, (getattr(note, label) for note in notes)))
        for name in SUMS:
            columns[name] = sum(getattr(note, name) for note in notes)
        return cls(**columns)

    @classmethod
    def join(cls, parts: Sequence["RecordNotes"]) -> "RecordNotes":
        """Return the notes of all parts, in order; the names of the characters are sorted."""
        names = sorted({name for part in parts for name in part.characters})
        number = {name: n for n, name in enumerate(names)}
        columns: dict[str, Any] = {"characters": names}
        character, others, first = [], [], 0
        for part in parts:
            renumbered = np.array([number[name] for name in part.characters], np.int32)
            character.append(renumbered[part.character])
            record, further = part.others.T
            others.append(np.stack([first + record, renumbered[further]], axis=1))
            first += len(part)
        columns |= {"character": np.concatenate(character), "others": np.concatenate(others)}
        for name in ("width", "height", "caption", "stored", "look"):
            columns[name] = np.concatenate([getattr(part, name) for part in parts])
        for name in ("views", "styles"):
            columns[name] = Counter[str]()
            for part in parts:
                columns[name].update(getattr(part, name))
        for name in SUMS:
            columns[name] = sum(getattr(part, name) for part in parts)
        return cls(**columns)
