"""Batch plan: the records of every batch, a pure function of seed, settings and step."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt64

from train.data.buckets import Size
from train.data.candidates import Candidates
from train.data.dataset import Dataset
from train.data.errors import DataError
from train.data.hashing import hash64, splitmix64
from train.data.stream import Stream

Items = TypeVar("Items", int, np.ndarray)


class BatchRows(NamedTuple):
    """Records of one global batch of b samples."""

    size: Size  # height and width of the targets
    target: Int[np.ndarray, "b"]  # record numbers
    reference: Int[np.ndarray, "b"]  # record numbers; the target itself where not paired
    others: Int[np.ndarray, "b j"]  # likewise, of the target's further characters; -1 is none
    paired: Bool[np.ndarray, "b"]
    epoch: Int[np.ndarray, "b"]  # paired and unpaired targets count theirs apart
    seed: UInt64[np.ndarray, "b"]  # seeds of the random augmentation


class BatchPlan:
    """Batches of one stage.

    The samples are one endless sequence in which unpaired and paired targets alternate, evenly
    spread by their share. Each kind has its own epochs, shuffled anew every time. A batch has
    targets of one bucket: the sequence is distributed to the buckets, and step s is the s-th time
    that a bucket has collected a full batch. So every target comes once in each epoch of its
    kind, and the targets that do not fill a batch at the end of an epoch are not dropped but wait
    for the next epoch. A bucket with fewer targets than a batch is merged into the nearest larger
    one, so that no target waits much longer than an epoch.

    No state passes from one step to the next: the position of a step in the sequence is found by
    counting. The division of the rows among processes does not change a batch.

    Attributes:
        batch: rows of the global batch.
        resolution: resolution of the buckets.
        sizes: (height, width) of the buckets in use.
        subjects: characters of a target that have a reference; targets show no more.
        records: record numbers of all targets, ascending, [n].
        bucket: index into `sizes` of each target, [n].
        targets: number of unpaired targets.
        pairs: number of paired targets.
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
        subjects: int | None = 1,
        candidates: Candidates | None = None,
    ) -> None:
        """Assign the targets to buckets.

        Args:
            dataset: data set of the records.
            batch: rows of the global batch.
            resolution: resolution of the buckets (`train.data.buckets`).
            paired: share of samples whose reference is another picture of the character.
            seed: seed of shuffling, pairing and augmentation; give every stage its own, such as
                (seed, "stage1").
            characters: mask of the characters to use; all by default.
            subjects: the most characters that a target shows; None is any number, of which the
                first has a reference.
            candidates: the records, where other plans have them already; in place of `characters`
                and `subjects`.

        Raises:
            DataError: there are no targets, or no pairs although `paired` is above 0.
            ValueError: `batch` is below 1, or `paired` outside 0 to 1.
        """
        if batch < 1 or not 0 <= paired <= 1:
            raise ValueError(f"batch {batch} must be at least 1, and paired {paired} from 0 to 1")
        self.batch, self.resolution = batch, resolution
        share = Fraction(paired).limit_denominator(1000)
        self._paired, self._period = share.numerator, share.denominator
        self._seed = (seed,) if isinstance(seed, int) else tuple(seed)
        candidates = candidates or Candidates(dataset, characters, subjects)
        _check(dataset, candidates, paired)
        self.subjects, self._others = candidates.subjects or 1, candidates.others
        self._pair_index = candidates.pair_index
        only_pairs = paired == 1
        self.sizes, bucket = candidates.buckets(resolution, batch, only_pairs=only_pairs)
        of_pairs = bucket[candidates.is_pair]
        self.records = candidates.pairs if only_pairs else candidates.targets
        self.bucket = of_pairs if only_pairs else bucket
        count = len(self.sizes)
        self._streams = (
            Stream((*self._seed, "unpaired"), candidates.targets, bucket, count),
            Stream((*self._seed, "paired"), candidates.pairs, of_pairs, count),
        )
        self.targets, self.pairs = len(candidates.targets), len(candidates.pairs)
        self._lock = Lock()  # one thread shuffles an epoch while the others wait
        self._cached = lru_cache(maxsize=8)(self._rows)  # called for every sample of a batch
        rebuild = partial(BatchPlan, batch=batch, resolution=resolution, paired=paired, seed=seed)
        records = {"characters": candidates.characters, "subjects": candidates.subjects}
        self._reduced = partial(rebuild, **records), (dataset,)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced  # a lock cannot be pickled

    def rows(self, step: int) -> BatchRows:
        """Return the global batch of a step, counted from 0; safe to call from threads."""
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
        in_bucket = np.empty(len(items), bool)
        for stream, mask in zip(self._streams, (~paired, paired), strict=True):
            if mask.any():
                target[mask], stream_bucket = stream.items(position[mask])
                in_bucket[mask] = stream_bucket == bucket
                epoch[mask] = position[mask] // len(stream)
        target, paired, epoch = target[in_bucket], paired[in_bucket], epoch[in_bucket]
        seeds = splitmix64(hash64(*self._seed, "sample"), items[in_bucket])
        reference = np.where(paired, self._pair_index.sample(target, seeds), target)
        others = self._references_of_others(target, paired, seeds)
        return BatchRows(self.sizes[bucket], target, reference, others, paired, epoch, seeds)

    def _references_of_others(
        self, target: np.ndarray, paired: np.ndarray, seeds: np.ndarray
    ) -> Int[np.ndarray, "b j"]:
        """Return a record of each further character: another picture if paired and there is one."""
        characters = self._others(target)
        references = np.where(characters >= 0, target[:, None], -1)
        rows, places = np.nonzero((characters >= 0) & paired[:, None])
        seeds = splitmix64(seeds[rows], places)  # other than those of the first character
        pictures = self._pair_index.sample(target[rows], seeds, characters[rows, places])
        references[rows, places] = pictures
        return references

    def _completed_by(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step's batch, and the length of the sequence that completes it."""
        least = (step + 1) * self.batch
        most = least + len(self.sizes) * (self.batch - 1)

        def completes(items: int) -> bool:
            return int((self._counts(items) // self.batch).sum()) > step

        end = _first_where(completes, least, most)
        bucket = int((self._counts(end) - self._counts(end - 1)).argmax())
        return bucket, end

    def _counts(self, items: int) -> np.ndarray:
        """Count the targets of each bucket among the first `items` of the sequence."""
        pairs = self._pairs_before(items)
        unpaired, paired = self._streams
        return unpaired.counts(items - pairs) + paired.counts(pairs)

    def _pairs_before(self, items: Items) -> Items:
        """Count the paired targets among the first `items` of the sequence."""
        return items * self._paired // self._period

    def _start(self, bucket: int, end: int, first: int) -> int:
        """Search back from `end` for the position of target number `first` of a bucket."""
        back = self.batch
        while back < end and self._counts(end - back)[bucket] > first:
            back *= 2
        low = max(end - back, 0)
        return _first_where(lambda items: self._counts(items)[bucket] > first, low, end) - 1


def _check(dataset: Dataset, candidates: Candidates, paired: float) -> None:
    if not len(candidates.targets):
        several = "" if candidates.subjects is None else ", or set subjects to train on groups"
        raise DataError(f"{dataset.path}: no picture is left to train on; hold out fewer{several}")
    if paired and not len(candidates.pairs):
        raise DataError(
            f"{dataset.path}: no character has two pictures, so there are no pairs; "
            "set paired to 0 or add pictures"
        )


def _first_where(predicate: Callable[[int], bool], low: int, high: int) -> int:
    """Return the smallest number from `low` to `high` that satisfies a monotonic predicate."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if predicate(middle) else (middle + 1, high)
    return low
