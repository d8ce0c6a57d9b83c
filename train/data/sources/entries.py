"""Entries of a source: where the pictures of its characters are, and what is known of them."""

import unicodedata
from typing import NamedTuple

from train.data.focus import Box


class Part(NamedTuple):
    """Picture inside another file: a member of a tar, or a cell of a table."""

    file: str  # the tar or table, relative to the root of the source
    name: str  # of the member, or of the column
    start: int  # first byte of the member, or number of the row
    size: int = 0  # bytes of the member


class Entry(NamedTuple):
    """One picture of one character; `file` and `mask` are relative to the root of the source.

    Of a picture inside another file, `file` is a name for people alone, and `part` leads to it.
    """

    file: str
    caption: str
    character: str
    mask: str = ""
    view: str = ""
    style: str = ""
    focus: tuple[Box, ...] = ()  # pixels of the upright picture
    part: Part | None = None
    mask_part: Part | None = None


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
    for name in ("file", "caption", "character", "mask", "view", "style"):
        value = getattr(entry, name)
        if name != "caption" and any(unicodedata.category(letter) == "Cc" for letter in value):
            raise ValueError(f"{name} has control characters")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON and the names of files can hold lone surrogates
            raise ValueError(f"{name} is not UTF-8 (it has surrogates); rename it") from None
    return entry
