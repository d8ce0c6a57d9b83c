"""Characters of a data set: the held-out split, and pairs of pictures of one character."""

import math

import numpy as np
from jaxtyping import Bool, Int

from train.data.dataset import Dataset


def held_out(dataset: Dataset, share: float) -> Bool[np.ndarray, "characters"]:
    """Return a mask of the held-out characters of a data set."""
    return dataset.character_hash < np.uint64(math.ceil(share * 2**64))


def shows_one(dataset: Dataset) -> Bool[np.ndarray, "n"]:
    """Return a mask of the records that show a single character."""
    alone = np.ones(len(dataset.character), bool)
    alone[dataset.others[:, 0]] = False
    return alone


def pictures_alone(dataset: Dataset) -> Int[np.ndarray, "characters"]:
    """Count the pictures that show each character alone."""
    return np.bincount(dataset.character[shows_one(dataset)], minlength=len(dataset.character_hash))


def next_picture(dataset: Dataset, record: int) -> int:
    """Return the next record of a record's character, cyclically; itself if it is the only one."""
    records = np.flatnonzero(dataset.character == dataset.character[record])
    return int(records[(np.searchsorted(records, record) + 1) % len(records)])


class PairIndex:
    """Index from each character to the records that show it, alone or among others."""

    def __init__(
        self, character: np.ndarray, records: np.ndarray, others: np.ndarray | None = None
    ) -> None:
        """Group the records by character.

        Args:
            character: character number of each record of the data set, [n].
            records: record numbers that may be sampled.
            others: record number and further character of records that show several, [m, 2].
        """
        self._character = np.asarray(character)
        shown, owners, highest = np.asarray(records), self._character[records], character.max()
        if others is not None and len(others):
            further = others[np.isin(others[:, 0], records)]
            shown, owners = np.concatenate([np.stack([shown, owners], axis=1), further]).T
            highest = max(highest, others[:, 1].max())
        self._counts = np.bincount(owners, minlength=int(highest) + 1)
        self._starts = np.cumsum(self._counts) - self._counts
        self._keys = _keys(owners, shown)
        self._keys.sort()  # by character, and the records of each ascending
        self._shown = self._keys.astype(np.uint32).astype(shown.dtype)  # the lower half

    def count(self, records: np.ndarray) -> np.ndarray:
        """Count for each record the records that show its character, itself included."""
        return self._counts[self._character[records]]

    def sample(
        self, records: np.ndarray, seeds: np.ndarray, characters: np.ndarray | None = None
    ) -> np.ndarray:
        """Sample for each record another that shows its character, or itself if there is no other.

        Args:
            records: record numbers.
            seeds: 64 random bits for each.
            characters: the character of each record that is meant; by default its first.
        """
        characters = self._character[records] if characters is None else characters
        rank = np.searchsorted(self._keys, _keys(characters, records)) - self._starts[characters]
        count = self._counts[characters]
        others = np.maximum(count - 1, 1).astype(np.uint64)
        rank = (rank + 1 + (seeds % others).astype(np.int64)) % count
        return self._shown[self._starts[characters] + rank]


def _keys(characters: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Return numbers in the order of characters first, then of records."""
    return (characters.astype(np.uint64) << np.uint64(32)) | records.astype(np.uint64)
