"""Which records make up which batch: a pure function of (seed, settings, step)."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt64

from train.data.buckets import Size, buckets, nearest
from train.data.characters import PairIndex
from train.data.dataset import Dataset
from train.data.errors import DataError
from train.data.hashing import key, mixed
from train.data.stream import Stream

Items = TypeVar("Items", int, np.ndarray)


class BatchRows(NamedTuple):
    """One global batch."""

    size: Size  # height and width of the targets
    target: Int[np.ndarray, "b"]  # record numbers
    reference: Int[np.ndarray, "b"]  # the target itself where not paired
    paired: Bool[np.ndarray, "b"]
    epoch: Int[np.ndarray, "b"]  # of the unpaired or the paired targets
    seed: UInt64[np.ndarray, "b"]  # for what is random in preparing the pictures


class BatchPlan:
    """Batches of one stage.

    The samples are one endless sequence: unpaired and paired targets in turn, evenly spread by
    their share, each kind in epochs of its own, shuffled anew every time. A batch has targets
    of one bucket: the sequence is dealt out to the buckets, and step s is the s-th time that a
    bucket has gathered a batch. So every target comes once in each epoch of its kind, and what
    does not fill a batch at an epoch's end is not dropped but waits for the next epoch's. A
    bucket with fewer targets than a batch is joined to the nearest that has more, so that
    nothing waits longer than about an epoch.

    Nothing is carried from one step to the next: the position of a step in the sequence is
    found by counting. A host's part of a batch does not change the batch.

    Attributes:
        resolution: of the buckets.
        sizes: of the buckets that are used, height and width.
        records: numbers of all targets, ascending, [n].
        bucket: of each of them, an index of `sizes`, [n].
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch: int,
        resolution: int,
        paired: float,
        seed: tuple[object, ...] | int,
        characters: Bool[np.ndarray, "characters"] | None = None,
    ) -> None:
        """
        Args:
            dataset: where the records are.
            batch: samples of a step, over all hosts.
            resolution: of the buckets (`train.data.buckets`).
            paired: share of samples whose reference is another picture of the character.
            seed: of shuffling, pairing and preparation; give every stage its own, such as
                (seed, "stage1").
            characters: which to take, by number; all by default.

        Raises:
            DataError: there are no targets, or no pairs where pairs are wanted.
            ValueError: a batch below 1, or a share outside 0..1.
        """
        if batch < 1 or not 0 <= paired <= 1:
            raise ValueError(f"batch {batch} and paired {paired}; expected 1 or more, and 0 to 1")
        self.batch, self.resolution = batch, resolution
        share = Fraction(paired).limit_denominator(1000)
        self._paired, self._of = share.numerator, share.denominator
        self._seed = (seed,) if isinstance(seed, int) else tuple(seed)
        taken = _taken(dataset, characters)
        self._partners = PairIndex(dataset.character, taken)
        pairs = taken[self._partners.count(taken) >= 2]
        _check(dataset, taken, pairs, paired)
        used = pairs if paired == 1 else taken
        width, height = np.asarray(dataset.width), np.asarray(dataset.height)
        self.sizes = _joined(width[used], height[used], buckets(resolution), batch)
        self.records, self.bucket = used, nearest(width[used], height[used], self.sizes)
        self._streams = []
        for kind, records in (("unpaired", taken), ("paired", pairs)):
            bucket = nearest(width[records], height[records], self.sizes)
            self._streams.append(Stream((*self._seed, kind), records, bucket, len(self.sizes)))
        self.targets, self.pairs = len(taken), len(pairs)
        self._lock = Lock()  # an epoch is shuffled by one thread while the others wait
        self._cached = lru_cache(maxsize=8)(self._rows)  # every sample of a batch asks for it
        self._made_by = (
            partial(
                BatchPlan,
                batch=batch,
                resolution=resolution,
                paired=paired,
                seed=seed,
                characters=characters,
            ),
            (dataset,),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made_by  # a lock does not travel to another process

    def rows(self, step: int) -> BatchRows:
        """The global batch of a step, counted from 0; threads may ask at the same time."""
        with self._lock:
            return self._cached(step)

    def _rows(self, step: int) -> BatchRows:
        bucket, end = self._completed_by(step)
        last = int(self._counts(end)[bucket])
        items = np.arange(self._start(bucket, end, last - self.batch), end)
        paired = self._pairs_before(items + 1) > self._pairs_before(items)
        position = np.where(paired, self._pairs_before(items), items - self._pairs_before(items))
        target = np.empty(len(items), np.int64)
        epoch = np.empty(len(items), np.int64)
        own = np.empty(len(items), bool)
        for stream, chosen in zip(self._streams, (~paired, paired), strict=True):
            if chosen.any():
                target[chosen], in_bucket = stream.items(position[chosen])
                own[chosen] = in_bucket == bucket
                epoch[chosen] = position[chosen] // len(stream)
        target, paired, epoch = target[own], paired[own], epoch[own]
        seeds = mixed(key(*self._seed, "sample"), items[own])
        reference = np.where(paired, self._partners.drawn(target, seeds), target)
        return BatchRows(self.sizes[bucket], target, reference, paired, epoch, seeds)

    def _completed_by(self, step: int) -> tuple[int, int]:
        """The bucket of a step's batch, and the length of the sequence that completes it."""
        least = (step + 1) * self.batch
        most = least + len(self.sizes) * (self.batch - 1)

        def enough(items: int) -> bool:
            return int((self._counts(items) // self.batch).sum()) > step

        end = _least(enough, least, most)
        bucket = int((self._counts(end) - self._counts(end - 1)).argmax())
        return bucket, end

    def _counts(self, items: int) -> np.ndarray:
        pairs = self._pairs_before(items)
        unpaired, paired = self._streams
        return unpaired.counts(items - pairs) + paired.counts(pairs)

    def _pairs_before(self, items: Items) -> Items:
        return items * self._paired // self._of

    def _start(self, bucket: int, end: int, first: int) -> int:
        """Where the sequence has the bucket's target number `first`; looks back from `end`."""
        back = self.batch
        while back < end and self._counts(end - back)[bucket] > first:
            back *= 2
        low = max(end - back, 0)
        return _least(lambda items: self._counts(items)[bucket] > first, low, end) - 1


def _taken(dataset: Dataset, characters: np.ndarray | None) -> np.ndarray:
    if characters is None:
        return np.arange(len(dataset))
    return np.flatnonzero(characters[dataset.character])


def _check(dataset: Dataset, targets: np.ndarray, pairs: np.ndarray, paired: float) -> None:
    if not len(targets):
        raise DataError(f"{dataset.path}: no picture is left to train on; hold out fewer")
    if paired and not len(pairs):
        raise DataError(
            f"{dataset.path}: no character has two pictures, so there are no pairs; "
            "set paired to 0 or add pictures"
        )


def _joined(width: np.ndarray, height: np.ndarray, sizes: list[Size], batch: int) -> list[Size]:
    """The buckets that have at least a batch of targets, the others joined to the nearest."""
    while len(sizes) > 1:
        counts = np.bincount(nearest(width, height, sizes), minlength=len(sizes))
        fewest = int(counts.argmin())
        if counts[fewest] >= batch:
            break
        sizes = sizes[:fewest] + sizes[fewest + 1 :]
    return sizes


def _least(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number from `low` to `high` for which it holds; it holds for `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
