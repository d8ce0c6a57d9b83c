"""Entries of a source: where the pictures of its characters are, and what is known of them."""

import json
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, overload

from train.data.boxes import Box
from train.data.subject_boxes import SubjectBox

_BLOCK = 256  # entries; a shard has a multiple of them by default


class Part(NamedTuple):
    """Picture inside another file: a member of a tar, or a cell of a table."""

    file: str  # the tar or table, relative to the root of the source
    name: str  # of the member, or of the column
    start: int  # first byte of the member, or number of the row
    size: int = 0  # bytes of the member


class Entry(NamedTuple):
    """One picture of one character, or of several.

    `file` and `mask` are relative to the root of the source.

    Of a picture inside another file, `file` is a name for people alone, and `part` leads to it.
    """

    file: str
    caption: str
    character: str
    mask: str = ""
    view: str = ""
    style: str = ""
    focus: tuple[Box, ...] = ()  # pixels of the upright picture
    subjects: tuple[SubjectBox, ...] = ()  # likewise; `character` first
    part: Part | None = None
    mask_part: Part | None = None


class Entries(Sequence[Entry]):
    """Entries that stay packed, a block at a time: a tenth of the memory of their objects."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._blocks: list[bytes] = []
        self._last: list[Entry] = []  # not a block yet
        for entry in entries:
            self.append(entry)

    def append(self, entry: Entry) -> None:
        """Add an entry."""
        self._last.append(entry)
        if len(self._last) == _BLOCK:
            self._blocks.append(zlib.compress(json.dumps(self._last).encode(), 1))
            self._last = []

    def __len__(self) -> int:
        return _BLOCK * len(self._blocks) + len(self._last)

    def __iter__(self) -> Iterator[Entry]:
        for block in self._blocks:
            yield from _unpacked(block)
        yield from self._last

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        block, place = divmod(range(len(self))[at], _BLOCK)
        return (_unpacked(self._blocks[block]) if block < len(self._blocks) else self._last)[place]


@lru_cache(maxsize=1)  # readers go through them in order
def _unpacked(block: bytes) -> list[Entry]:
    rows = json.loads(zlib.decompress(block))
    return [_entry(*row) for row in rows]


def _entry(*row: Any) -> Entry:
    entry = Entry(*row)
    parts = [values and Part(*values) for values in (entry.part, entry.mask_part)]
    focus: Any = tuple(map(tuple, entry.focus))
    rows: Any = entry.subjects
    subjects = tuple(SubjectBox(name, tuple(box)) for name, box in rows)
    return entry._replace(focus=focus, subjects=subjects, part=parts[0], mask_part=parts[1])


class Rejected(NamedTuple):
    """File, row or picture that cannot be used, with the reason."""

    file: str
    reason: str


class SetAside(Rejected):
    """File or picture that is left out on purpose."""


class SourceOptions(NamedTuple):
    """How a source is to be understood."""

    character: str = ""  # key or column that names the character; "folder" and "file" as well
    captioned: bool = True  # whether a picture without a caption is rejected
    follow_links: bool = False  # whether links may lead out of the source


USUAL = SourceOptions()


def check(entry: Entry) -> Entry:
    """Return the entry; ValueError where a text of it cannot be stored or shown.

    Any printable text of any language is taken, and what joins or separates its letters.
    """
    more = {"character": [subject.character for subject in entry.subjects]}
    for name in ("file", "caption", "character", "mask", "view", "style"):
        value = "".join((getattr(entry, name), *more.get(name, ())))
        if name != "caption" and any(unicodedata.category(letter) == "Cc" for letter in value):
            raise ValueError(f"{name} has control characters")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON and the names of files can hold lone surrogates
            raise ValueError(f"{name} is not UTF-8 (it has surrogates); rename it") from None
    return entry
