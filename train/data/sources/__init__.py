"""Sources of a data set: folders of pictures, and the files that list or hold pictures."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from train.data.errors import DataError
from train.data.sources.entries import USUAL, Entries, Rejected, SetAside, SourceOptions
from train.data.sources.folder import READERS, FolderReader
from train.data.sources.pictures import PICTURES
from train.data.sources.walk import walk


class PictureSource(NamedTuple):
    """Pictures of a source, which are not read yet, and what becomes of its other files."""

    root: Path
    entries: Entries
    rejected: list[Rejected]  # pictures and rows that cannot be used
    aside: list[SetAside]  # files that are left out on purpose
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
    root = path if path.is_dir() else path.parent
    found = walk(path, follow_links=options.follow_links) if path.is_dir() else [path.name]
    files: list[str] = []
    aside: list[SetAside] = []
    for file in _shown(found, "file"):
        (aside if isinstance(file, SetAside) else files).append(file)
    reader = FolderReader(root, files, options)
    items = iter(reader) if path.is_dir() else reader.read(path.name)
    entries, listed, masks = Entries(), set[str](), set[str]()
    rejected: list[Rejected] = []
    for item in _shown(items, "row"):
        if isinstance(item, SetAside):
            aside.append(item)
        elif isinstance(item, Rejected):
            rejected.append(item)
        elif item.file in listed:
            rejected.append(Rejected(item.file, "is listed twice; the first is taken"))
        else:
            entries.append(item)
            listed.add(item.file)
            masks.add(item.mask)
    if not entries and not rejected:
        raise DataError(f"{path}: lists no picture{_why(aside)}")
    used = reader.helpers | listed | masks
    aside = [item for item in aside if item.file not in used]
    rest = set(files) - used - {item.file for item in rejected + aside}
    unlisted = sorted(file for file in rest if PurePosixPath(file).suffix.lower() in PICTURES)
    aside += [SetAside(file, "is not named by the list above it") for file in unlisted]
    others = Counter(PurePosixPath(file).suffix.lower() for file in rest.difference(unlisted))
    return PictureSource(
        *(root, entries, rejected, aside, len(reader.helpers)),
        *(dict(others.most_common()), sorted(reader.unknown)),
    )


def _shown(items: Iterable[Any], unit: str) -> Iterable[Any]:
    """Show the progress through a large source."""
    from tqdm import tqdm  # of the train extra, which the options' help does without

    return tqdm(items, unit=unit, desc="listing", mininterval=0.5, delay=2, leave=False)


def _why(aside: list[SetAside]) -> str:
    if aside:
        return f"; {len(aside)} files are set aside: {aside[0].file}, for one, {aside[0].reason}"
    return f"; expected {', '.join(sorted(PICTURES))}, or {', '.join(READERS)}"
