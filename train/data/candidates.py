"""Candidates of batch plans: the records of some characters, with their pairs and buckets."""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int

from train.data.buckets import Size, buckets, nearest_bucket
from train.data.characters import PairIndex
from train.data.dataset import Dataset

_BLOCK = 1 << 18  # records whose shapes are compared at a time


class Candidates:
    """Records that may be targets and references; plans of several stages share them.

    Attributes:
        characters: mask of the characters; None is all.
        subjects: the most characters of a target; None is any number.
        targets: record numbers, ascending, int32 [n].
        is_pair: mask of the targets whose character has another picture, [n].
        pairs: their record numbers, int32.
        pair_index: the other pictures of each, also those of more than `subjects` characters.
    """

    def __init__(
        self,
        dataset: Dataset,
        characters: Bool[np.ndarray, "characters"] | None = None,
        subjects: int | None = None,
    ) -> None:
        """Find the records that show nobody but a mask of characters; all records by default."""
        self.characters, self.subjects = characters, subjects
        self._width, self._height = dataset.width, dataset.height
        others, records = dataset.others, _records_of(dataset, characters)
        # Behind the last record stand as many of nobody as a target may look at.
        most = (subjects or 1) - 1
        padded = np.pad(others, ((0, most), (0, 0)), constant_values=-1)
        self._in_group, self._others = np.ascontiguousarray(padded.T)
        self.pair_index = PairIndex(dataset.character, records, others)
        self.targets = records
        if subjects is not None:
            crowded = others[_ranks(others[:, 0]) >= subjects - 1, 0]
            self.targets = np.setdiff1d(records, crowded)
        self.is_pair = self.pair_index.count(self.targets) >= 2
        self.pairs = self.targets[self.is_pair]
        self.buckets = lru_cache(maxsize=2)(self._buckets)  # stages often share theirs

    def others(self, targets: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b j"]:
        """Return the `subjects` - 1 further characters of targets; -1 where there are fewer."""
        count = (self.subjects or 1) - 1
        if not count:
            return np.empty((len(targets), 0), np.int32)
        targets = targets.astype(np.int32)
        at = np.searchsorted(self._in_group[:-count], targets)[:, None] + np.arange(count)
        return np.where(self._in_group[at] == targets[:, None], self._others[at], -1)

    def _buckets(
        self, resolution: int, batch: int, *, only_pairs: bool
    ) -> tuple[list[Size], Int[np.ndarray, "n"]]:
        """Return the sizes in use, and the index of each target's.

        A size is in use if it has at least a batch of the targets, or of the pairs with
        `only_pairs`; one always stays.
        """
        sizes = buckets(resolution)
        while True:
            bucket = self._nearest(sizes)
            counts = np.bincount(bucket[self.is_pair] if only_pairs else bucket)
            counts = np.pad(counts, (0, len(sizes) - len(counts)))
            fewest = int(counts.argmin())
            if len(sizes) == 1 or counts[fewest] >= batch:
                return sizes, bucket
            sizes = sizes[:fewest] + sizes[fewest + 1 :]

    def _nearest(self, sizes: list[Size]) -> Int[np.ndarray, "n"]:
        bucket = np.empty(len(self.targets), np.int16)
        for start in range(0, len(bucket), _BLOCK):
            block = slice(start, start + _BLOCK)
            records = self.targets[block]
            bucket[block] = nearest_bucket(self._width[records], self._height[records], sizes)
        return bucket


def _records_of(dataset: Dataset, characters: np.ndarray | None) -> Int[np.ndarray, "n"]:
    if characters is None:
        return np.arange(len(dataset), dtype=np.int32)
    shown = characters[dataset.character]
    records, others = dataset.others.T
    shown[records[~characters[others]]] = False
    return np.flatnonzero(shown).astype(np.int32)


def _ranks(records: np.ndarray) -> Int[np.ndarray, "m"]:
    """Return how many equal numbers precede each of some ascending numbers."""
    return np.arange(len(records)) - np.searchsorted(records, records)
