"""Tar shards as webdataset writes them: files of one stem are a sample. Nothing is extracted."""

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ic_jax.text_files import decode_text
from ic_jax.untrusted_files import MAX_TEXT, open_regular, parse_json
from train.data.sources.entries import Entry, Part, Rejected, SourceOptions
from train.data.sources.pictures import PICTURES
from train.data.sources.rows import RowReader

TARS = (".tar",)
CAPTIONS = ("txt", "caption", "text")
CLASSES = ("cls", "label", "character")
TEXTS = frozenset({*CAPTIONS, *CLASSES, "json"})


def read_tar(
    root: Path, tar: str, options: SourceOptions, unknown: set[str]
) -> Iterator[Entry | Rejected]:
    """Read the samples of a tar; of pictures, the places alone.

    Raises:
        DataError: no sample names its character.
    """
    reader = RowReader(root, tar, options)
    try:
        with open_regular(root / tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for key, members in groupby(_members(archive), key=lambda m: _split(m.name)[0]):
                name = f"{tar}!{key}"
                try:
                    pieces = {_split(member.name)[1]: member for member in members}
                    fields, parts = _sample(file, tar, pieces)
                    if "file" not in parts:
                        raise ValueError("has no picture")
                    read = {part.name for part in parts.values()}
                    unknown |= {
                        e for e, m in pieces.items() if e not in TEXTS and m.name not in read
                    }
                    yield reader.entry(fields, f"{tar}!{parts['file'].name}", parts)
                except ValueError as error:
                    yield Rejected(name, " ".join(str(error).split()))
    except (OSError, ValueError, tarfile.TarError, EOFError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        yield Rejected(tar, f"is no tar that can be read ({reason}); a compressed one: unpack it")
        return
    reader.check_named()
    unknown |= reader.unknown


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files; links, devices and what macOS adds lead nowhere."""
    for member in archive:
        name = member.name.rpartition("/")[2]
        if member.isreg() and not member.issparse() and not name.startswith("."):
            yield member


def _split(name: str) -> tuple[str, str]:
    """Return the key and the extension of a member, which begins at the first full stop."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _sample(
    file: Any, tar: str, pieces: dict[str, tarfile.TarInfo]
) -> tuple[dict[str, Any], dict[str, Part]]:
    """Return what the texts of a sample say, and the places of picture and mask."""
    fields: dict[str, Any] = {}
    parts = {}
    for extension, member in pieces.items():
        if extension in TEXTS:
            data = _read(file, member)
            text = decode_text(data, member.name).strip()
            if extension == "json":
                said = parse_json(text, member.name)
                if not isinstance(said, dict):
                    raise ValueError(f"{member.name} is not a JSON object")
                fields = said | fields
            else:
                fields["caption" if extension in CAPTIONS else "character"] = text
        elif extension == "mask.png":
            parts["mask"] = Part(tar, member.name, member.offset_data, member.size)
        elif f".{extension}" in PICTURES and "file" not in parts:
            parts["file"] = Part(tar, member.name, member.offset_data, member.size)
    return fields, parts


def _read(file: Any, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_TEXT:
        raise ValueError(f"{member.name} has {member.size} bytes; a text has at most {MAX_TEXT}")
    position = file.tell()
    file.seek(member.offset_data)
    data = file.read(member.size)
    file.seek(position)
    return data
