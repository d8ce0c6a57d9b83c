"""Who is kept from training, and which pictures show the same character."""

import numpy as np
from jaxtyping import Bool

from train.data.dataset import Dataset
from train.data.hashing import key


def is_held_out(character: str, share: float) -> bool:
    """Whether a character is kept from training, by a hash of its id: the same for every run."""
    return int(key(character)) < share * 2**64


def held_out(dataset: Dataset, share: float) -> Bool[np.ndarray, "characters"]:
    """Which of a data set's characters are."""
    return np.array([is_held_out(name, share) for name in dataset.characters])


class PairIndex:
    """For every record the others of its character."""

    def __init__(self, character: np.ndarray, taken: np.ndarray) -> None:
        """
        Args:
            character: number of the character of each record of the data set, [n].
            taken: the records that may be drawn.
        """
        self._character = np.asarray(character)
        own = self._character[taken]
        self._by_character = taken[np.argsort(own, kind="stable")]
        self._counts = np.bincount(own, minlength=int(self._character.max()) + 1)
        self._starts = np.cumsum(self._counts) - self._counts
        self._rank = np.zeros(len(character), np.int32)  # among its character's records
        sorted_own = self._character[self._by_character]
        self._rank[self._by_character] = np.arange(len(taken)) - self._starts[sorted_own]

    def count(self, records: np.ndarray) -> np.ndarray:
        """How many records the characters of these have."""
        return self._counts[self._character[records]]

    def drawn(self, records: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """For each record one of the others, all equally likely; itself if there is none."""
        count = self.count(records)
        others = np.maximum(count - 1, 1).astype(np.uint64)
        step = 1 + (seeds % others).astype(np.int64)
        rank = (self._rank[records] + step) % count
        return self._by_character[self._starts[self._character[records]] + rank]
