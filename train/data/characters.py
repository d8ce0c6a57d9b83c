"""Characters of a data set: the held-out split, and pairs of pictures of one character."""

import math

import numpy as np
from jaxtyping import Bool, Int

from train.data.dataset import Dataset


def held_out(dataset: Dataset, share: float) -> Bool[np.ndarray, "characters"]:
    """Return a mask of the held-out characters of a data set."""
    return dataset.character_hash < np.uint64(math.ceil(share * 2**64))


def shown_alone(dataset: Dataset) -> Int[np.ndarray, "characters"]:
    """Count the pictures that show each character alone."""
    alone = np.ones(len(dataset), bool)
    alone[dataset.others[:, 0]] = False
    return np.bincount(dataset.character[alone], minlength=dataset.card["characters"])


def next_picture(dataset: Dataset, record: int) -> int:
    """Return the next record of a record's character, cyclically; itself if it is the only one."""
    records = np.flatnonzero(dataset.character == dataset.character[record])
    return int(records[(np.searchsorted(records, record) + 1) % len(records)])


class PairIndex:
    """Index from each record to the other records of its character."""

    def __init__(self, character: np.ndarray, records: np.ndarray) -> None:
        """Group the records by character.

        Args:
            character: character number of each record of the data set, [n].
            records: record numbers that may be sampled.
        """
        self._character = np.asarray(character)
        owners = self._character[records]
        self._by_character = records[_stable_order(owners)]
        self._counts = np.bincount(owners, minlength=int(self._character.max()) + 1)
        self._starts = np.cumsum(self._counts) - self._counts
        self._rank = np.zeros(len(character), np.int32)  # among the records of its character
        sorted_owners = self._character[self._by_character]
        self._rank[self._by_character] = np.arange(len(records)) - self._starts[sorted_owners]

    def count(self, records: np.ndarray) -> np.ndarray:
        """Count for each record the records of its character, itself included."""
        return self._counts[self._character[records]]

    def sample(self, records: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Sample for each record another of its character, or itself if there is no other."""
        count = self.count(records)
        others = np.maximum(count - 1, 1).astype(np.uint64)
        step = 1 + (seeds % others).astype(np.int64)
        rank = (self._rank[records] + step) % count
        return self._by_character[self._starts[self._character[records]] + rank]

    def sample_of(self, characters: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Sample a record of each character; -1 where the records have none of it."""
        known = (characters >= 0) & (characters < len(self._counts))
        characters = np.where(known, characters, 0)
        count = np.where(known, self._counts[characters], 0)
        rank = (seeds % np.maximum(count, 1).astype(np.uint64)).astype(np.int64)
        at = np.minimum(self._starts[characters] + rank, len(self._by_character) - 1)
        return np.where(count > 0, self._by_character[at], -1)


def _stable_order(values: np.ndarray) -> np.ndarray:
    """Return the stable `argsort` of int32 values by a plain sort, which is much faster."""
    keys = values.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(values), dtype=np.uint64)
    keys.sort()
    return keys.astype(np.uint32)  # the lower half: the positions
