"""An opened data set: records by number, and an index to plan with."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from train.data.card import CARD, INDEX
from train.data.errors import DataError
from train.data.records import Record, decode


class Dataset:
    """A data set that `python -m train prepare` wrote. It may be pickled: a path travels.

    Attributes:
        path: its folder.
        character: number of the character of each record, int32 [n], mapped from disk.
        width: pixels of each record's picture, int32 [n].
        height: the same.

    A reader stays open for every shard that was read from; with thousands of shards, allow as
    many files (`ulimit -n`), or prepare larger shards.
    """

    def __init__(self, path: Path | str) -> None:
        """Open it; no record is read.

        Raises:
            DataError: not a data set, or one whose files do not fit together.
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
        """The characters' ids, by number."""
        return json.loads((self.path / INDEX / "characters.json").read_text())

    def read(self, number: int) -> Record:
        """One record; touches the shard that holds it, at one place.

        Raises:
            DataError: it is damaged, or cannot be read.
        """
        try:
            return decode(self._source[int(number)])
        except Exception as error:  # array_record and protobuf have a dozen kinds
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
            f"{path}: is no data set of `python -m train prepare` (it has no {CARD}); {hint}"
        ) from None
    except ValueError:
        raise DataError(f"{path / CARD}: is damaged; copy the data set again") from None


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.exists() else None
    if found != size:
        state = "is missing" if found is None else f"has {found} bytes, not {size}"
        raise DataError(f"{path}: {state}; copy the data set again")
