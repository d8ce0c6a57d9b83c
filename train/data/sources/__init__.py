"""Sources of a data set: folders of pictures, and the files that list or hold pictures."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from train.data.errors import DataError
from train.data.sources.entries import USUAL, Entry, Rejected, SourceOptions
from train.data.sources.folder import READERS, FolderReader
from train.data.sources.pictures import PICTURES
from train.data.sources.walk import walk


class PictureSource(NamedTuple):
    """Pictures of a source, which are not read yet, and what becomes of its other files."""

    root: Path
    entries: list[Entry]
    rejected: list[Rejected]  # pictures and rows that cannot be used
    aside: list[Rejected]  # files that are left out on purpose
    helpers: int  # files that name, describe or hold the pictures
    others: dict[str, int]  # files that are neither, by suffix
    unknown: list[str]  # keys of lists that no field has


def read_source(path: Path, options: SourceOptions = USUAL) -> PictureSource:
    """List the pictures of a source (docs/data.md has the kinds); every file is accounted for.

    Args:
        path: a folder; or a list (JSON lines, JSON, CSV), a table (parquet, arrow) or a tar.
        options: how it is to be understood.

    Raises:
        FileNotFoundError: there is no such path.
        DataError: the source lists no picture, or a list names no character.
        ModuleNotFoundError: the package that reads a file is not installed.
    """
    if not path.exists():
        raise FileNotFoundError(2, "there is no such folder or file", str(path))
    root, aside = path, []
    if path.is_dir():
        files = []
        for file in walk(path, follow_links=options.follow_links):
            aside.append(file) if isinstance(file, Rejected) else files.append(file)
        reader = FolderReader(path, files, options)
        items: Iterable[Entry | Rejected] = reader
    else:
        if path.suffix.lower() not in READERS:
            raise DataError(f"{path}: is no folder and none of {', '.join(READERS)}")
        root, files = path.parent, [path.name]
        reader = FolderReader(root, files, options)
        reader.helpers.add(path.name)
        items = READERS[path.suffix.lower()](root, path.name, options, reader.unknown)
    entries: dict[str, Entry] = {}
    rejected: list[Rejected] = []
    for item in items:
        if isinstance(item, Rejected):
            rejected.append(item)
        elif item.file in entries:
            rejected.append(Rejected(item.file, "is listed twice; the first is taken"))
        else:
            entries[item.file] = item
    aside += reader.aside
    if not entries and not rejected:
        raise DataError(f"{path}: lists no picture{_why(aside)}")
    used = reader.helpers | entries.keys() | {entry.mask for entry in entries.values()}
    aside = [item for item in aside if item.file not in used]
    rest = set(files) - used - {item.file for item in rejected + aside}
    unlisted = sorted(file for file in rest if PurePosixPath(file).suffix.lower() in PICTURES)
    aside += [Rejected(file, "is not named by the list above it") for file in unlisted]
    others = Counter(PurePosixPath(file).suffix.lower() for file in rest.difference(unlisted))
    return PictureSource(
        *(root, list(entries.values()), rejected, aside, len(reader.helpers)),
        *(dict(others.most_common()), sorted(reader.unknown)),
    )


def _why(aside: list[Rejected]) -> str:
    if aside:
        return f"; {len(aside)} files are set aside: {aside[0].file}, for one, {aside[0].reason}"
    return f"; expected {', '.join(sorted(PICTURES))}, or {', '.join(READERS)}"
