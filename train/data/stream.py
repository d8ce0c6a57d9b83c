"""Endless stream of training targets: epoch after epoch, each shuffled anew."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from train.data.hashing import hash64, permutation

_BLOCK = 1024  # targets between two cumulative counts: 1% of the memory of the order itself


class _Epoch(NamedTuple):
    order: np.ndarray  # shuffled indices into the stream's targets, int32 [n]
    counts: np.ndarray  # targets of each bucket before each block, int64 [blocks + 1, buckets]


class Stream:
    """Targets of one kind, paired or not; item i belongs to epoch i // n."""

    def __init__(
        self, seed: tuple[object, ...], records: np.ndarray, bucket: np.ndarray, buckets: int
    ) -> None:
        """Count the targets of each bucket.

        Args:
            seed: seed of the shuffling.
            records: record numbers of the targets, [n].
            bucket: bucket index of each target, [n].
            buckets: number of buckets.
        """
        self.seed, self.records, self.bucket = seed, records, bucket
        self._totals = np.bincount(bucket, minlength=buckets)
        self.epoch = lru_cache(maxsize=2)(self._epoch)  # a batch spans two at most

    def __len__(self) -> int:
        return len(self.records)

    def counts(self, items: int) -> np.ndarray:
        """Count how many of the first `items` lie in each bucket, int64 [buckets]."""
        if not items:
            return np.zeros_like(self._totals)
        epoch, rest = divmod(items, len(self))
        counts = epoch * self._totals
        if rest:
            shuffled = self.epoch(epoch)
            block, tail = rest // _BLOCK, rest - rest % _BLOCK
            counts += shuffled.counts[block]
            last = self.bucket[shuffled.order[tail:rest]]
            counts += np.bincount(last, minlength=len(self._totals))
        return counts

    def items(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (record, bucket) of the items at ascending positions, int64 and int16."""
        epochs, rest = np.divmod(positions, len(self))
        indices = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            indices[in_epoch] = self.epoch(int(epoch)).order[rest[in_epoch]]
        return self.records[indices], self.bucket[indices]

    def _epoch(self, epoch: int) -> _Epoch:
        order = permutation(hash64(*self.seed, epoch), len(self))
        bucket = self.bucket[order]
        starts = np.arange(0, len(self), _BLOCK)
        counts = np.zeros((len(starts) + 1, len(self._totals)), np.int64)
        for b in range(len(self._totals)):
            counts[1:, b] = np.add.reduceat(bucket == b, starts, dtype=np.int64).cumsum()
        return _Epoch(order, counts)
