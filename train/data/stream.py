"""An endless sequence of targets: epoch after epoch, each shuffled anew."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from train.data.hashing import key, permutation

_BLOCK = 1024  # targets between two counts that are kept: 1% of the memory of the order itself


class _Epoch(NamedTuple):
    order: np.ndarray  # the targets' numbers within the stream, shuffled, int32 [n]
    counts: np.ndarray  # targets of each bucket before each block, int64 [blocks + 1, buckets]


class Stream:
    """Targets of one kind; item i belongs to epoch i // n."""

    def __init__(
        self, seed: tuple[object, ...], records: np.ndarray, bucket: np.ndarray, buckets: int
    ) -> None:
        """
        Args:
            seed: of the shuffling.
            records: numbers of the targets, [n].
            bucket: of each target, below `buckets`, [n].
            buckets: how many there are.
        """
        self.seed, self.records, self.bucket = seed, records, bucket
        self._totals = np.bincount(bucket, minlength=buckets)
        self.epoch = lru_cache(maxsize=2)(self._epoch)  # a batch spans two at the most

    def __len__(self) -> int:
        return len(self.records)

    def counts(self, items: int) -> np.ndarray:
        """How many of the first `items` lie in each bucket, int64 [buckets]."""
        if not items:
            return np.zeros_like(self._totals)
        epoch, rest = divmod(items, len(self))
        counted = epoch * self._totals
        if rest:
            shuffled = self.epoch(epoch)
            block, tail = rest // _BLOCK, rest - rest % _BLOCK
            counted += shuffled.counts[block]
            last = self.bucket[shuffled.order[tail:rest]]
            counted += np.bincount(last, minlength=len(self._totals))
        return counted

    def items(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(record, bucket) of the items at ascending positions, int64 and int16."""
        epochs, rest = np.divmod(positions, len(self))
        within = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            within[chosen] = self.epoch(int(epoch)).order[rest[chosen]]
        return self.records[within], self.bucket[within]

    def _epoch(self, epoch: int) -> _Epoch:
        order = permutation(key(*self.seed, epoch), len(self))
        bucket = self.bucket[order]
        starts = np.arange(0, len(self), _BLOCK)
        counts = np.zeros((len(starts) + 1, len(self._totals)), np.int64)
        for b in range(len(self._totals)):
            counts[1:, b] = np.add.reduceat(bucket == b, starts, dtype=np.int64).cumsum()
        return _Epoch(order, counts)
