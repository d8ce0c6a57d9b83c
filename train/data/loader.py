"""Loader of batches from any step on, prefetched by threads or processes."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int, UInt8

from ic_jax.preprocessing.images import ImageError
from train.data.batch_plan import BatchPlan, BatchRows
from train.data.boxes import scale_boxes
from train.data.buckets import Size
from train.data.dataset import Dataset
from train.data.encoded_store import Embeddings, EncodedRows, LatentPosterior
from train.data.errors import DataError
from train.data.focus import density
from train.data.pictures import CENTRED, Augment, apply_crop, choose_crop
from train.data.references import SampleRecords, prepare_references, subject_regions

# A process may skip this share of its samples, and always the first FREE, before it stops.
MAX_SKIPPED, FREE = 0.01, 16


class Cached(NamedTuple):
    """Encoded rows that replace targets and captions."""

    latents: EncodedRows
    captions: EncodedRows


@dataclass
class SkipCounter:
    """Count of the samples that this process has prepared, and of those that were replaced."""

    seen: int = 0
    skipped: int = 0

    def count(self, samples: int, reasons: list[str]) -> None:
        """Add samples; raise DataError when more than `MAX_SKIPPED` of all were skipped."""
        self.seen, self.skipped = self.seen + samples, self.skipped + len(reasons)
        if self.skipped > max(FREE, MAX_SKIPPED * self.seen):
            raise DataError(
                f"{self.skipped} of {self.seen} samples could not be read, the last because "
                f"{reasons[-1]}; copy or prepare the data set again"
            )


class HostBatch(NamedTuple):
    """The b rows of a global batch that one process prepares; s is the encoders' side (384)."""

    size: Size  # height and width of the targets
    target: UInt8[np.ndarray, "b h w 3"] | LatentPosterior  # the latter from a cache
    prompt: Embeddings | None  # embeddings of the captions, from a cache
    focus: Float[np.ndarray, "b y x"] | None  # density of the focus boxes; None without focus
    low: UInt8[np.ndarray, "b *k s s 3"] | None  # the reference, k of several; None for a LoRA
    high: UInt8[np.ndarray, "b *k 4 s s 3"] | None  # the reference in four tiles
    regions: Float[np.ndarray, "b k n"] | None  # of the subjects at the image tokens, if several
    caption: list[str]  # of the target
    character: list[str]
    record: Int[np.ndarray, "b"]  # record number of the target
    reference: Int[np.ndarray, "b"]  # record number of the reference, the first of several
    paired: Bool[np.ndarray, "b"]
    mirrored: Bool[np.ndarray, "b"]  # whether the reference is mirrored; targets never are
    epoch: Int[np.ndarray, "b"]
    row: Int[np.ndarray, "b"]  # index into the global batch
    total: int  # rows of the global batch
    skipped: list[str]  # reasons why rows were replaced by the next; usually empty


def batches(
    dataset: Dataset,
    plan: BatchPlan,
    augment: Augment,
    *,
    start: int,
    stop: int,
    side: int | None = 384,
    cell: int | None = None,
    token: int = 16,
    cached: Cached | None = None,
    skips: SkipCounter | None = None,
    rows: Sequence[int] | None = None,
    threads: int = 16,
    workers: int = 0,
) -> Iterator[HostBatch]:
    """Yield the batches of steps `start` to `stop` - 1 in order.

    The batches depend on the plan and `augment` alone, not on the step at which a run was
    interrupted, the threads, the workers or the number of processes. A process reads only the
    records of its rows.

    A row whose target or reference is damaged is replaced by the next row of the same global
    batch, which then has it twice; `HostBatch.skipped` and a warning report it.

    Args:
        dataset: data set of the plan.
        plan: records of each batch.
        augment: augmentation of the pictures.
        start: first step, counted from 0.
        stop: step after the last.
        side: side of the reference squares in pixels, as the image encoders expect; None
            prepares no reference.
        cell: side in pixels of the cells of `HostBatch.focus`, such as that of a latent
            (`train.data.focus`); None computes no focus.
        token: side in pixels of what an image token shows, for the regions of several subjects.
        cached: encoded rows to read in place of targets and captions; `augment` then does not
            apply to targets, which were cropped in the middle.
        skips: counter that continues that of an earlier part of the run.
        rows: indices into every global batch, in order, that this process prepares; None is all.
        threads: samples prepared at a time, in each worker.
        workers: processes that prepare samples; 0 uses threads of this process, which fill
            several cores because Pillow releases the GIL while it decodes and resizes.

    Raises:
        DataError: more than 1% of the samples were skipped, or all rows of a batch are damaged.
    """
    indices = tuple(range(plan.batch) if rows is None else rows)
    read = _ReadSample(dataset, plan, augment, side, cell, token, cached, indices)
    samples = (
        grain.MapDataset.range(start * len(indices), stop * len(indices))
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    )
    counter = skips or SkipCounter()
    if workers:
        if not flags.FLAGS.is_parsed():  # as absl's main() would: grain needs it
            flags.FLAGS.mark_as_parsed()
        samples = samples.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    try:
        for batch in samples.batch(len(indices), batch_fn=_collate):
            for reason in batch.skipped:
                warnings.warn(f"skipped: {reason}", stacklevel=2)
            counter.count(len(indices), batch.skipped)
            yield batch
    except DataError as error:  # grain appends lines to the message
        raise DataError(f"{dataset.path}: {str(error).partition(chr(10))[0]}") from None


@dataclass(frozen=True)
class _ReadSample:
    """Picklable function that prepares a sample by its number in this process."""

    dataset: Dataset
    plan: BatchPlan
    augment: Augment
    side: int | None
    cell: int | None
    token: int
    cached: Cached | None
    indices: tuple[int, ...]  # rows of every global batch that this process prepares

    def __call__(self, sample: int) -> dict[str, Any]:
        step, position = divmod(int(sample), len(self.indices))
        row, rows = self.indices[position], self.plan.rows(step)
        skipped: list[str] = []
        for ahead in range(self.plan.batch):
            try:
                prepared = self._prepare(rows, (row + ahead) % self.plan.batch)
                return prepared | {"row": row, "skipped": skipped}
            except (DataError, ImageError) as error:
                skipped.append(f"step {step} row {row + ahead}: {error}")
        raise DataError(f"no sample of a batch can be read; {skipped[0]}")

    def _prepare(self, rows: BatchRows, row: int) -> dict[str, Any]:
        number, reference = int(rows.target[row]), int(rows.reference[row])
        records = SampleRecords(self.dataset)
        record = records.read(number)
        rng = np.random.Generator(np.random.Philox(key=int(rows.seed[row])))
        low = high = prompt = focus = regions = None
        mirrored = False
        if self.side is not None:
            numbers = [reference, *rows.others[row].tolist()]
            low, high, mirrored = prepare_references(
                records, record, numbers, self.side, self.augment, rng
            )
        augment = CENTRED if self.cached else self.augment
        crop = choose_crop((record.height, record.width), rows.size, augment, rng)
        if self.cached is None:
            target = apply_crop(records.decode(number), rows.size, crop)
        else:
            target, prompt = (encoded.read(number) for encoded in self.cached)
        if self.cell is not None:
            scale = (crop.width / record.width, crop.height / record.height)
            boxes = scale_boxes(record.focus, *scale, crop.left, crop.top)
            focus = density(boxes, *rows.size, self.cell)
        if self.side is not None and self.plan.subjects > 1:
            regions = subject_regions(record, crop, rows.size, self.token, self.plan.subjects)
        return {
            "size": rows.size,
            "target": target,
            "prompt": prompt,
            "focus": focus,
            "low": low,
            "high": high,
            "regions": regions,
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
            values[name] = _stack(values[name])
    values |= {name: values[name][0] for name in ("size", "total")}
    values["skipped"] = [reason for reasons in values["skipped"] for reason in reasons]
    return HostBatch(**values)


def _stack(rows: list[Any]) -> Any:
    """Stack rows of arrays or of named tuples of arrays; None stays None."""
    if rows[0] is None:
        return None
    if isinstance(rows[0], LatentPosterior | Embeddings):
        row_type: Any = type(rows[0])
        return row_type(*map(np.stack, zip(*rows, strict=True)))
    return np.stack(rows)
