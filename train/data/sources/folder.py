"""Folders of pictures: lists, tables and tars in them, or pictures with captions beside them."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ic_jax.text_files import read_text
from ic_jax.untrusted_files import read_json
from train.data.errors import DataError
from train.data.sources.entries import Entry, Rejected, SetAside, SourceOptions, check
from train.data.sources.lists import LISTS, read_list
from train.data.sources.pictures import PICTURES
from train.data.sources.rows import character_of, without_repeats
from train.data.sources.tables import TABLES, read_table
from train.data.sources.tars import TARS, read_tar

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "metadata.json")
CAPTIONS = (".txt", ".caption")  # of several, the first is taken
MAX_CAPTION = 2**20  # bytes
READERS = {
    **dict.fromkeys(LISTS, read_list),
    **dict.fromkeys(TABLES, read_table),
    **dict.fromkeys(TARS, read_tar),
}


class FolderReader:
    """Reader of the files of a folder.

    Attributes:
        helpers: files read that are no pictures: lists, tables, tars and captions.
        unknown: keys of lists that no field has.
    """

    def __init__(self, root: Path, files: list[str], options: SourceOptions) -> None:
        """Read the `files`, which are relative to `root`."""
        self._root, self._options = root, options
        self._files = sorted(files, key=lambda file: PurePosixPath(file).parts)
        self.helpers: set[str] = set()
        self.unknown: set[str] = set()

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield the pictures of lists, tables and tars, then the others with their captions."""
        named: set[str] = set()  # pictures and masks
        listed = set()  # folders whose pictures a list names, with all below
        for file in self._sources():
            if isinstance(file, SetAside):
                yield file
                continue
            path = PurePosixPath(file)
            if path.name in METADATA:
                listed.add(path.parent)
            for item in self.read(file):
                if isinstance(item, Entry):
                    named |= {item.file, item.mask}
                yield item
        yield from self._captioned(listed, named)

    def read(self, file: str) -> Iterator[Entry | Rejected]:
        """Yield the pictures of a list, table or tar; DataError if the file is none."""
        suffix = PurePosixPath(file).suffix.lower()
        if suffix not in READERS:
            raise DataError(f"{self._root / file}: is no folder and none of {', '.join(READERS)}")
        self.helpers.add(file)
        for item in READERS[suffix](self._root, file, self._options, self.unknown):
            if isinstance(item, Rejected) and item.file == file:
                self.helpers.discard(file)
            yield item

    def _sources(self) -> Iterator[str | SetAside]:
        """Yield the lists, tables and tars to read; others of these kinds are set aside."""
        names = defaultdict(list)  # of the metadata files of each folder
        for path in map(PurePosixPath, self._files):
            if path.name in METADATA:
                names[path.parent].append(path.name)
        saved = self._saved()
        for file in self._files:
            path = PurePosixPath(file)
            suffix = path.suffix.lower()
            if path.name in METADATA:
                first = min(names[path.parent], key=METADATA.index)
                reason = f"{first} beside it is read instead"
                yield file if path.name == first else SetAside(file, reason)
            elif suffix == ".arrow" and path.name not in saved.get(path.parent, {path.name}):
                yield SetAside(file, "is a cache of `datasets`, which its state.json does not name")
            elif suffix in TABLES + TARS:
                yield file
            elif suffix in LISTS and suffix != ".json":
                yield SetAside(file, "is a list of another name than metadata; give it as SOURCE")

    def _saved(self) -> dict[PurePosixPath, set[str]]:
        """Return the files of each folder that `datasets` saved, by its state.json."""
        saved = {}
        for file in self._files:
            path = PurePosixPath(file)
            if path.name != "state.json":
                continue
            try:
                names = {item["filename"] for item in read_json(self._root / file)["_data_files"]}
            except (OSError, ValueError, KeyError, TypeError):
                continue  # another program's state
            saved[path.parent] = names
        return saved

    def _captioned(self, listed: set[PurePosixPath], named: set[str]) -> Iterator[Entry | Rejected]:
        """Yield the pictures that no list names, each with the caption beside it."""
        pictures, captions = [], defaultdict(list)
        for file in self._files:
            path = PurePosixPath(file)
            suffix = path.suffix.lower()
            if suffix in PICTURES and listed.isdisjoint(path.parents) and file not in named:
                pictures.append(file)
            elif suffix in CAPTIONS:
                captions[path.with_suffix("")].append(file)
        key = self._options.character
        if pictures and not self.helpers and key not in ("", "file", "folder"):
            raise DataError(
                f"--character {key}: {self._root} has no list or table with such a key; leave it "
                "out, and each folder is a character"
            )
        shorter = without_repeats({character_of(file) for file in pictures})
        for file in pictures:
            path = PurePosixPath(file)
            beside = captions.get(path.with_suffix(""), [])
            beside.sort(key=lambda caption: CAPTIONS.index(PurePosixPath(caption).suffix.lower()))
            self.helpers.update(beside[:1])
            yield from (
                SetAside(other, "is a second caption of its picture") for other in beside[1:]
            )
            folder = character_of(file)
            own = file if key == "file" else str(path.with_suffix(""))
            character = "" if key == "file" else shorter.get(folder, folder)
            try:
                yield check(Entry(file, self._caption(path, beside), character or own))
            except (OSError, ValueError) as error:
                yield Rejected(file, " ".join(str(error).split()))

    def _caption(self, picture: PurePosixPath, beside: list[str]) -> str:
        if beside:
            return read_text(self._root / beside[0], limit=MAX_CAPTION).strip()
        if not self._options.captioned:
            return ""
        raise ValueError(
            f"has no caption; write one into {picture.with_suffix('.txt').name} beside it, or have "
            "a program write them: --caption COMMAND"
        )
