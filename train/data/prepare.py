"""python -m train prepare: a folder of pictures to a data set."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ic_jax.files import atomic_folder
from train.data import card
from train.data.buckets import buckets
from train.data.errors import DataError
from train.data.shards import WORK, Shard, ShardJob, write_shards
from train.data.sources import PictureSource, Rejected, read_source

BAD = "bad.jsonl"


@dataclass(frozen=True)
class PrepareOptions:
    """What a data set is prepared to."""

    resolutions: tuple[int, ...] = (512, 1024)  # the paper's stages 1 and 2, and 3
    shard_size: int = 512  # pictures; about 100 MB, tensorflow-datasets' advice
    max_bad: float = 0.05  # share of pictures that may be bad; beyond, something else is wrong

    def __post_init__(self) -> None:
        for resolution in self.resolutions:
            buckets(resolution)
        if self.shard_size < 1:
            raise ValueError(f"--shard-size {self.shard_size} is not a positive number")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"--max-bad {self.max_bad:g} is no share from 0 to 1")


def prepare(
    source: Path,
    out: Path,
    options: PrepareOptions = PrepareOptions(),
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the data set `out`, the same bytes for the same source, however many workers.

    Interrupted or killed, it leaves the folder `out`.partial; the same command then goes on
    from its finished shards. `out` itself appears whole, at the end.

    Args:
        source: a folder or JSON Lines (`train.data.sources.read_source`).
        out: the data set's folder.
        options: what it is prepared to.
        workers: processes; by default one per core.
        overwrite: replace an `out` that exists.

    Raises:
        DataError: nothing to take, or more than `options.max_bad` is bad.
        FileNotFoundError: no source.
        FileExistsError: `out` is in the way.
    """
    found = read_source(source)
    with atomic_folder(out, overwrite=overwrite, owns=is_ours, resume=True) as partial:
        (partial / WORK).mkdir(exist_ok=True)
        jobs = _jobs(found, partial, options)
        _remove_strays(partial, jobs)
        shards = _written(jobs, found, options, workers or os.cpu_count() or 1)
        bad = found.rejected + [item for shard in shards for item in shard.bad]
        _report(partial / BAD, bad)
        card.write(partial, shards, bad, options.resolutions)


def _jobs(found: PictureSource, out: Path, options: PrepareOptions) -> list[ShardJob]:
    size, largest = options.shard_size, max(options.resolutions)
    cuts = range(0, len(found.entries), size)
    return [
        ShardJob(out, found.root, found.entries[cut : cut + size], largest, number, len(cuts))
        for number, cut in enumerate(cuts)
    ]


def _remove_strays(out: Path, jobs: list[ShardJob]) -> None:
    """What an interrupted run over another source, or into shards of another size, left."""
    wanted = {job.file for job in jobs} | {WORK}
    half = [path for path in (out / WORK).iterdir() if path.suffix != ".json"]
    for path in half + [path for path in out.iterdir() if path.name not in wanted]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _written(
    jobs: list[ShardJob], found: PictureSource, options: PrepareOptions, workers: int
) -> list[Shard]:
    """The shards in order; stops when too many pictures are bad."""
    total = len(found.entries) + len(found.rejected)
    allowed = int(options.max_bad * total)
    shards: dict[str, Shard] = {}
    bad = list(found.rejected)
    sizes = {job.file: len(job.entries) for job in jobs}
    with tqdm(total=len(found.entries), unit="picture", mininterval=0.5) as bar:
        _check(bad, allowed, total, jobs)
        for shard in write_shards(jobs, min(workers, len(jobs)) or 1):
            shards[shard.file] = shard
            bad += shard.bad
            bar.update(sizes[shard.file])
            bar.set_postfix(bad=len(bad), refresh=False)
            _check(bad, allowed, total, jobs)
    return [shards[job.file] for job in jobs]


def _check(bad: list[Rejected], allowed: int, total: int, jobs: list[ShardJob]) -> None:
    if len(bad) <= allowed and jobs:
        return
    message = (
        f"{len(bad)} of {total} pictures cannot be used, more than {allowed}; "
        f"the first: {bad[0].file}: {bad[0].reason}"
    )
    if jobs:
        report = jobs[0].out / BAD
        _report(report, bad)
        message += f"; those found so far are in {report}"
    raise DataError(f"{message}; repair or remove them, or raise --max-bad")


def _report(path: Path, bad: Iterable[Rejected]) -> None:
    path.write_text("".join(json.dumps(item._asdict()) + "\n" for item in bad))


def is_ours(name: str) -> bool:
    names = {WORK, BAD, "dataset_info.json", "features.json", "index", *card.FILES}
    return name in names or name.startswith("characters-train.array_record-")
