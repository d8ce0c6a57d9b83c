"""Folders of pictures: lists, tables and tars in them, or pictures with captions beside them."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ic_jax.text_files import read_text
from ic_jax.untrusted_files import read_json
from train.data.sources.entries import Entry, Rejected, SourceOptions, check
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
        aside: files set aside, with the reason.
        unknown: keys of lists that no field has.
    """

    def __init__(self, root: Path, files: list[str], options: SourceOptions) -> None:
        """Read the `files`, which are relative to `root`."""
        self._root, self._options = root, options
        self._files = sorted(files, key=lambda file: PurePosixPath(file).parts)
        self.helpers: set[str] = set()
        self.aside: list[Rejected] = []
        self.unknown: set[str] = set()

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield the pictures of lists, tables and tars, then the others with their captions."""
        named: set[str] = set()  # pictures and masks
        listed = set()  # folders whose pictures a list names, with all below
        for file in self._sources():
            path = PurePosixPath(file)
            self.helpers.add(file)
            if path.name in METADATA:
                listed.add(path.parent)
            read = READERS[path.suffix.lower()]
            for item in read(self._root, file, self._options, self.unknown):
                if isinstance(item, Entry):
                    named |= {item.file, item.mask}
                yield item
        yield from self._captioned(listed, named)

    def _sources(self) -> list[str]:
        """Return the lists, tables and tars to read; others of these kinds are set aside."""
        chosen: dict[PurePosixPath, str] = {}
        rest = []
        for file in self._files:
            path = PurePosixPath(file)
            if path.name in METADATA:
                other = chosen.get(path.parent)
                if other and METADATA.index(PurePosixPath(other).name) < METADATA.index(path.name):
                    self._set_aside(file, f"{PurePosixPath(other).name} beside it is read instead")
                    continue
                if other:
                    self._set_aside(other, f"{path.name} beside it is read instead")
                chosen[path.parent] = file
            elif path.suffix.lower() in TABLES + TARS:
                rest.append(file)
            elif path.suffix.lower() in LISTS[:-1]:
                self._set_aside(file, "is a list of another name than metadata; give it as SOURCE")
        saved = self._saved()
        for file in rest:
            path = PurePosixPath(file)
            if path.suffix == ".arrow" and path.name not in saved.get(path.parent, {path.name}):
                self._set_aside(file, "is a cache of `datasets`; its state.json does not name it")
                rest = [other for other in rest if other != file]
        return [*chosen.values(), *rest]

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
                continue
            saved[path.parent] = names
        return saved

    def _captioned(self, listed: set[PurePosixPath], named: set[str]) -> Iterator[Entry | Rejected]:
        pictures, captions = [], defaultdict(list)
        for file in self._files:
            path = PurePosixPath(file)
            suffix = path.suffix.lower()
            if suffix in PICTURES and listed.isdisjoint(path.parents) and file not in named:
                pictures.append(file)
            elif suffix in CAPTIONS:
                captions[path.with_suffix("")].append(file)
        folders = without_repeats({character_of(file) for file in pictures})
        for file in pictures:
            path = PurePosixPath(file)
            beside = captions.get(path.with_suffix(""), [])
            beside.sort(key=lambda caption: CAPTIONS.index(PurePosixPath(caption).suffix.lower()))
            if self._options.character == "file":
                character = file
            else:
                character = character_of(file) or path.stem
            character = folders.get(character, character)
            try:
                yield check(Entry(file, self._caption(path, beside), character))
            except (OSError, ValueError) as error:
                yield Rejected(file, " ".join(str(error).split()))

    def _caption(self, picture: PurePosixPath, files: list[str]) -> str:
        if not files:
            if not self._options.captioned:
                return ""
            raise ValueError(
                f"has no caption; write one into {picture.with_suffix('.txt').name} beside it, or "
                "have a program write them: --caption COMMAND"
            )
        self.helpers.add(files[0])
        for file in files[1:]:
            self._set_aside(file, "is a second caption of its picture")
        return read_text(self._root / files[0], limit=MAX_CAPTION).strip()

    def _set_aside(self, file: str, reason: str) -> None:
        self.aside.append(Rejected(file, reason))
