"""Batches from any step on, read ahead in threads or processes."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int, UInt8

from ic_jax.preprocessing.images import ImageError
from train.data.batch_plan import BatchPlan, BatchRows
from train.data.buckets import Size
from train.data.dataset import Dataset
from train.data.encoded_store import Embeddings, EncodedRows, LatentPosterior
from train.data.errors import DataError
from train.data.focus import density, scale_boxes
from train.data.pictures import (
    CENTRED,
    Augment,
    apply_crop,
    choose_crop,
    decode_pixels,
    prepare_reference,
)

# Beyond this share of the samples read by a host the data set is broken, not a picture in it.
MAX_SKIPPED, FREE = 0.01, 16


class Cached(NamedTuple):
    """What of a data set is read from a cache: a plan's targets, and captions."""

    latents: EncodedRows
    captions: EncodedRows


@dataclass
class SkipCounter:
    """Samples of a run so far that this host prepared, and how many of them were replaced."""

    seen: int = 0
    skipped: int = 0

    def count(self, samples: int, reasons: list[str]) -> None:
        """DataError beyond `MAX_SKIPPED` of all."""
        self.seen, self.skipped = self.seen + samples, self.skipped + len(reasons)
        if self.skipped > max(FREE, MAX_SKIPPED * self.seen):
            raise DataError(
                f"{self.skipped} of {self.seen} samples could not be read, the last because "
                f"{reasons[-1]}; copy or prepare the data set again"
            )


class HostBatch(NamedTuple):
    """A host's rows of a global batch; b of them, s the encoders' side (384)."""

    size: Size  # height and width of the targets
    target: UInt8[np.ndarray, "b h w 3"] | LatentPosterior  # cached ones
    prompt: Embeddings | None  # cached ones of the captions
    focus: Float[np.ndarray, "b y x"] | None  # density of what counts most, if asked for
    low: UInt8[np.ndarray, "b s s 3"] | None  # the reference whole, if one is asked for
    high: UInt8[np.ndarray, "b 4 s s 3"] | None  # and in four tiles
    caption: list[str]  # the target's
    character: list[str]
    record: Int[np.ndarray, "b"]  # of the target
    reference: Int[np.ndarray, "b"]  # record of the reference
    paired: Bool[np.ndarray, "b"]
    mirrored: Bool[np.ndarray, "b"]  # the reference; targets never are
    epoch: Int[np.ndarray, "b"]
    row: Int[np.ndarray, "b"]  # of the global batch
    total: int  # rows of the global batch
    skipped: list[str]  # why rows were replaced by another of the batch; mostly empty


def batches(
    dataset: Dataset,
    plan: BatchPlan,
    augment: Augment,
    *,
    start: int,
    stop: int,
    side: int | None = 384,
    cell: int | None = None,
    cached: Cached | None = None,
    skips: SkipCounter | None = None,
    rows: Sequence[int] | None = None,
    threads: int = 16,
    workers: int = 0,
) -> Iterator[HostBatch]:
    """The batches of steps `start` to `stop` - 1 in order.

    They depend on the plan and `augment` alone: not on where a run was interrupted, on threads
    or workers, and a global batch not on the number of hosts. A host reads the records of its
    own rows and no others.

    A row whose target or reference is damaged is replaced by the next row of the same global
    batch, which is then in it twice; this is reported in `HostBatch.skipped` and as a warning.

    Args:
        dataset: what `plan` was made for.
        plan: which records.
        augment: how they are prepared.
        start: first step, counted from 0.
        stop: one beyond the last.
        side: pixels, of the reference's squares: what the image encoders take; None prepares
            no reference.
        cell: pixels, of the cells that the targets' density of focus is given for
            (`train.data.focus`), a latent's side; None gives none.
        cached: where targets and captions are read from instead; targets are then cut at the
            middle, whatever `augment` says.
        skips: counts what is skipped, on from what an earlier part of the run counted.
        rows: of every global batch, in order, that this host prepares; None is all of them.
        threads: samples prepared at a time, in each worker.
        workers: processes to prepare in; 0 uses threads of this one. Pillow lets go of
            Python's lock while it decodes and scales, so that threads fill several cores.

    Raises:
        DataError: more than 1% of the samples had to be skipped, or all of one batch.
    """
    own = tuple(range(plan.batch) if rows is None else rows)
    read = _Read(dataset, plan, augment, side, cell, cached, own)
    samples = (
        grain.MapDataset.range(start * len(own), stop * len(own))
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    )
    counted = skips or SkipCounter()
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's processes ask for flags of a main() of absl's
            flags.FLAGS.mark_as_parsed()
        samples = samples.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    try:
        for batch in samples.batch(len(own), batch_fn=_collate):
            for reason in batch.skipped:
                warnings.warn(f"skipped: {reason}", stacklevel=2)
            counted.count(len(own), batch.skipped)
            yield batch
    except DataError as error:  # grain adds lines of its own
        raise DataError(f"{dataset.path}: {str(error).partition(chr(10))[0]}") from None


@dataclass(frozen=True)
class _Read:
    """One sample: number `sample` of those of this host."""

    dataset: Dataset
    plan: BatchPlan
    augment: Augment
    side: int | None
    cell: int | None
    cached: Cached | None
    own: tuple[int, ...]  # rows of every batch

    def __call__(self, sample: int) -> dict[str, Any]:
        step, at = divmod(int(sample), len(self.own))
        row, rows = self.own[at], self.plan.rows(step)
        skipped: list[str] = []
        for ahead in range(self.plan.batch):
            try:
                made = self._prepared(rows, (row + ahead) % self.plan.batch)
                return made | {"row": row, "skipped": skipped}
            except (DataError, ImageError) as error:
                skipped.append(f"step {step} row {row + ahead}: {error}")
        raise DataError(f"no sample of a batch can be read; {skipped[0]}")

    def _prepared(self, rows: BatchRows, row: int) -> dict[str, Any]:
        number, reference = int(rows.target[row]), int(rows.reference[row])
        record = self.dataset.read(number)
        decode = cache(lambda n: decode_pixels(record if n == number else self.dataset.read(n)))
        rng = np.random.Generator(np.random.Philox(key=int(rows.seed[row])))
        low = high = prompt = focus = None
        mirrored = False
        if self.side is not None:
            low, high, mirrored = prepare_reference(decode(reference), self.side, self.augment, rng)
        augment = CENTRED if self.cached else self.augment
        crop = choose_crop((record.height, record.width), rows.size, augment, rng)
        if self.cached is None:
            target = apply_crop(decode(number), rows.size, crop)
        else:
            target, prompt = (part.read(number) for part in self.cached)
        if self.cell is not None:
            scale = (crop.width / record.width, crop.height / record.height)
            boxes = scale_boxes(record.focus, *scale, crop.left, crop.top)
            focus = density(boxes, *rows.size, self.cell)
        return {
            "size": rows.size,
            "target": target,
            "prompt": prompt,
            "focus": focus,
            "low": low,
            "high": high,
            "caption": record.caption,
            "character": record.character,
            "record": number,
            "reference": reference,
            "paired": rows.paired[row],
            "mirrored": mirrored,
            "epoch": rows.epoch[row],
            "total": self.plan.batch,
        }


def _collate(samples: Sequence[dict[str, Any]]) -> HostBatch:
    values: dict[str, Any] = {name: [s[name] for s in samples] for name in HostBatch._fields}
    for name in HostBatch._fields:
        if name not in ("size", "caption", "character", "total", "skipped"):
            values[name] = _stacked(values[name])
    values |= {name: values[name][0] for name in ("size", "total")}
    values["skipped"] = [reason for reasons in values["skipped"] for reason in reasons]
    return HostBatch(**values)


def _stacked(rows: list[Any]) -> Any:
    """Stack rows of arrays or of named tuples of arrays; None stays None."""
    if rows[0] is None:
        return None
    if isinstance(rows[0], LatentPosterior | Embeddings):
        kind: Any = type(rows[0])
        return kind(*map(np.stack, zip(*rows, strict=True)))
    return np.stack(rows)
