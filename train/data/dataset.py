"""Random access to a prepared data set: records by number, and an index for batch plans."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import UInt64

from train.data.card import CARD, CHARACTER_HASH, INDEX
from train.data.errors import DataError
from train.data.hashing import hash_names
from train.data.records import Record, deserialize


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
            DataError: the folder holds no data set, or a file is missing or of a wrong size.
        """
        self.path = Path(path)
        self.card = _card(self.path)
        index = self.path / INDEX
        for name, size in self.card["index"].items():
            _check_size(index / name, size)
        for shard in self.card["shards"]:
            _check_size(self.path / shard["file"], shard["bytes"])
        self.character, self.width, self.height = (
            np.load(index / f"{name}.npy", mmap_mode="r")
            for name in ("character", "width", "height")
        )

    def __len__(self) -> int:
        return int(self.card["pictures"])

    def __reduce__(self) -> tuple[type["Dataset"], tuple[Path]]:
        return Dataset, (self.path,)

    @cached_property
    def characters(self) -> list[str]:
        """Ids of the characters, by character number."""
        return json.loads((self.path / INDEX / "characters.json").read_text())

    @cached_property
    def character_hash(self) -> UInt64[np.ndarray, "characters"]:
        """Hash of each character's id, by character number; memory-mapped."""
        file = self.path / INDEX / CHARACTER_HASH
        if file.exists():
            return np.load(file, mmap_mode="r")
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
        builder = tfds.builder_from_directory(self.path)
        return ArrayRecordDataSource(builder.info.splits["train"].file_instructions)


def _card(path: Path) -> dict:
    try:
        return json.loads((path / CARD).read_text())
    except OSError:
        partial = path.with_name(path.name + ".partial")
        hint = "run the same command again to finish it" if partial.exists() else "check the path"
        raise DataError(
            f"{path}: is not a data set of `python -m train prepare` (it has no {CARD}); {hint}"
        ) from None
    except ValueError:
        raise DataError(f"{path / CARD}: is damaged; copy the data set again") from None


def _check_size(path: Path, size: int) -> None:
    actual = path.stat().st_size if path.exists() else None
    if actual != size:
        state = "is missing" if actual is None else f"has {actual} bytes, not {size}"
        raise DataError(f"{path}: {state}; copy the data set again")
