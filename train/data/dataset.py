"""Random access to a prepared data set: records by number, and an index for batch plans."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Int32, UInt64

from ic_jax.files import sha256_file
from ic_jax.untrusted_files import read_json
from train.data.card import CHARACTER_HASH, INDEX, OTHERS
from train.data.card_reading import AGAIN, read_card
from train.data.errors import DataError
from train.data.hashing import hash_names
from train.data.records import Record, deserialize

MAX_NAMES = 2**30  # bytes of the list of characters


class Dataset:
    """Data set that `python -m train prepare` wrote; pickled as its path.

    Each shard stays open after its first read. With thousands of shards, raise the limit of
    open files (`ulimit -n`) or prepare larger shards.

    Attributes:
        path: folder of the data set.
        card: contents of card.json.
        character: character number of each record, int32 [n], memory-mapped.
        width: picture width of each record in pixels, int32 [n], memory-mapped.
        height: picture height of each record in pixels, int32 [n], memory-mapped.
    """

    def __init__(self, path: Path | str) -> None:
        """Open the card and the index; no record is read.

        Raises:
            DataError: the folder holds no data set, a file is missing or of a wrong size, or the
                index is not that of the card.
        """
        self.path = Path(path)
        self.card = read_card(self.path)
        for file in self.card["shards"] + self.card["written"]:
            _check_size(self.path / file["file"], file["bytes"])
        self.character, self.width, self.height = (
            self._index(f"{name}.npy", np.int32, len(self))
            for name in ("character", "width", "height")
        )

    def check_index(self) -> None:
        """Compare the index with its checksums, which takes a second for ten million records.

        Raises:
            DataError: a file differs.
        """
        for file in self.card["written"]:
            path = self.path / file["file"]
            expected = file.get("sha256")  # earlier versions wrote none
            if path.parent.name == INDEX and expected and sha256_file(path) != expected:
                raise DataError(f"{path}: differs from its checksum; {AGAIN}")

    def _index(self, name: str, dtype: Any, *shape: int) -> np.ndarray:
        """Return an array of the index of a shape, in which -1 is any length; memory-mapped."""
        path = self.path / INDEX / name
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header raises what Python's parser does
            kind = type(error).__name__
            raise DataError(f"{path}: is damaged ({kind}); {AGAIN}") from None
        lengths = [n if wanted == -1 else wanted for n, wanted in zip(array.shape, shape)]  # noqa: B905
        if array.dtype != dtype or array.ndim != len(shape) or list(array.shape) != lengths:
            raise DataError(
                f"{path}: has {array.dtype}{list(array.shape)}, not {np.dtype(dtype)}"
                f"{list(shape)}; {AGAIN}"
            )
        return array

    def __len__(self) -> int:
        return int(self.card["pictures"])

    def __reduce__(self) -> tuple[type["Dataset"], tuple[Path]]:
        return Dataset, (self.path,)

    @cached_property
    def characters(self) -> list[str]:
        """Ids of the characters, by character number."""
        file = self.path / INDEX / "characters.json"
        try:
            names = read_json(file, limit=MAX_NAMES)
        except ValueError as error:
            raise DataError(f"{error}; {AGAIN}") from None
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not is_list or len(names) != self.card["characters"]:
            raise DataError(f"{file}: is no list of the characters; {AGAIN}")
        return names

    @cached_property
    def others(self) -> Int32[np.ndarray, "m 2"]:
        """Record number and further character of each picture of several, ascending; in memory."""
        file = self.path / INDEX / OTHERS
        if not file.exists():
            return np.empty((0, 2), np.int32)
        others = np.array(self._index(OTHERS, np.int32, -1, 2))
        limits = np.array([len(self), self.card["characters"]])
        if (others < 0).any() or (others >= limits).any() or (np.diff(others[:, 0]) < 0).any():
            raise DataError(f"{file}: names records or characters that are not there; {AGAIN}")
        return others

    @cached_property
    def character_hash(self) -> UInt64[np.ndarray, "characters"]:
        """Hash of each character's id, by character number; memory-mapped."""
        file = self.path / INDEX / CHARACTER_HASH
        if file.exists():
            return self._index(CHARACTER_HASH, np.uint64, self.card["characters"])
        return hash_names(self.characters)  # a data set of an earlier version

    def read(self, number: int) -> Record:
        """Read one record by one random access to its shard.

        Raises:
            DataError: the record is damaged or cannot be read.
        """
        try:
            return deserialize(self._source[int(number)])
        except Exception as error:  # array_record and protobuf raise a dozen types
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self.path}: record {number} cannot be read ({reason})") from error

    @cached_property
    def _source(self) -> ArrayRecordDataSource:
        # By the card alone: tensorflow-datasets' reader imports what features.json names.
        return ArrayRecordDataSource(
            [_WholeShard(str(self.path / s["file"]), s["records"]) for s in self.card["shards"]]
        )


@dataclass(frozen=True)
class _WholeShard:
    """Shard of which all records are read, as array_record is told of it."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


def _check_size(path: Path, size: int) -> None:
    actual = path.stat().st_size if path.exists() else None
    if actual != size:
        state = "is missing" if actual is None else f"has {actual} bytes, not {size}"
        raise DataError(f"{path}: {state}; {AGAIN}")
