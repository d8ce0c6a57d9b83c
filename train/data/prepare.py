"""`python -m train prepare`: conversion of a source of pictures to a data set."""

import json
import os
import shutil
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from ic_jax.files import atomic_folder, check_replaceable
from ic_jax.host_memory import free_host_memory
from ic_jax.preprocessing.images import MAX_DECODING
from train.data import card
from train.data.account import count_files
from train.data.captions import summarise, telling_words
from train.data.errors import DataError
from train.data.options import DEFAULTS, PrepareOptions
from train.data.programs import run_programs
from train.data.shards import WORK, Shard, ShardJob, write_shard
from train.data.sources import PictureSource, read_source
from train.data.sources.entries import Entries, Rejected
from train.workers import parallel_map

BAD, ASIDE = "bad.jsonl", "aside.jsonl"
RESULTS = ".results"  # folder beside a data set: what the user's programs made


def prepare(
    source: Path,
    out: Path,
    options: PrepareOptions = DEFAULTS,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the data set `out`; its bytes depend on the source, not on the number of workers.

    `out` appears whole, at the end. An interrupted or killed call leaves the folder
    `out`.partial, and the next call with the same arguments resumes from its finished shards.

    Args:
        source: folder, or a file that lists or holds pictures (`train.data.sources.read_source`).
        out: folder of the data set.
        options: settings of the data set.
        workers: processes; by default `default_workers`.
        overwrite: replace an `out` that exists.

    Raises:
        DataError: the source has no picture, or more than `options.max_bad` are rejected.
        FileNotFoundError: there is no source.
        FileExistsError: `out` exists.
    """
    pictures = read_source(source, options.source)
    check_replaceable(out.absolute(), overwrite, is_ours)
    store = out.with_name(out.name + RESULTS)
    pictures = run_programs(pictures, options.caption, options.mask, store, workers)
    with atomic_folder(out, overwrite=overwrite, owns=is_ours, resume=True) as partial:
        (partial / WORK).mkdir(exist_ok=True)
        jobs = _jobs(pictures, partial, options)
        _remove_strays(partial, jobs)
        shards = _run(jobs, pictures, options, workers)
        rejected, aside = (
            [item for shard in shards for item in getattr(shard, kind)]
            for kind in ("rejected", "aside")
        )
        _report(partial / BAD, pictures.rejected + rejected)
        _report(partial / ASIDE, pictures.aside + aside)
        account = {
            "bad": len(pictures.rejected + rejected),
            "files": count_files(pictures, rejected, aside),
            "unknown_keys": pictures.unknown,
            "telling_captions": _telling(pictures, rejected + aside),
        }
        card.write(partial, shards, options.resolutions, account)


def _telling(pictures: PictureSource, unused: list[Rejected]) -> dict:
    left = {item.file for item in unused}
    characters, captions = [], []
    for entry in pictures.entries:
        if entry.file not in left:
            characters.append(sys.intern(entry.character))
            captions.append(entry.caption)
    return summarise(telling_words(characters, captions))


def _jobs(pictures: PictureSource, out: Path, options: PrepareOptions) -> list[ShardJob]:
    size, side = options.shard_size, options.min_side
    largest = max(options.resolutions)
    shards = -(-len(pictures.entries) // size)
    entries = iter(pictures.entries)
    return [
        ShardJob(out, pictures.root, Entries(islice(entries, size)), largest, side, number, shards)
        for number in range(shards)
    ]


def _remove_strays(out: Path, jobs: list[ShardJob]) -> None:
    """Remove the leftovers of an interrupted run with another source or shard size."""
    wanted = {job.file for job in jobs} | {WORK}
    half = [path for path in (out / WORK).iterdir() if path.suffix != ".json"]
    for path in half + [path for path in out.iterdir() if path.name not in wanted]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _run(
    jobs: list[ShardJob], pictures: PictureSource, options: PrepareOptions, workers: int | None
) -> list[Shard]:
    """Write the shards and return them in order; DataError when too many pictures are rejected."""
    total = len(pictures.entries) + len(pictures.rejected)
    allowed = int(options.max_bad * total)
    shards: list[Shard] = []
    rejected = list(pictures.rejected)
    with tqdm(total=len(pictures.entries), unit="picture", mininterval=0.5) as bar:
        _check(rejected, allowed, total, jobs)
        workers = workers or default_workers()
        for shard in parallel_map(write_shard, jobs, workers=workers, chunk=1):
            bar.update(len(jobs[len(shards)].entries))
            shards.append(shard)
            rejected += shard.rejected
            bar.set_postfix(rejected=len(rejected), refresh=False)
            _check(rejected, allowed, total, jobs)
    return shards


def default_workers() -> int:
    """Return one process per core, or as many as can decode a picture in the free memory."""
    cores, free = os.cpu_count() or 1, free_host_memory()
    return cores if free is None else max(1, min(cores, int(free // MAX_DECODING)))


def _check(rejected: list[Rejected], allowed: int, total: int, jobs: list[ShardJob]) -> None:
    if len(rejected) <= allowed and jobs:
        return
    message = (
        f"{len(rejected)} of {total} pictures cannot be used, more than {allowed}; "
        f"the first: {rejected[0].file}: {rejected[0].reason}"
    )
    if jobs:
        report = jobs[0].out / BAD
        _report(report, rejected)
        message += f"; {report} lists them so far"
    raise DataError(f"{message}; repair or remove them, or raise --max-bad")


def _report(path: Path, rejected: Iterable[Rejected]) -> None:
    path.write_text("".join(json.dumps(item._asdict()) + "\n" for item in rejected))


def is_ours(name: str) -> bool:
    """Return whether a file or folder of that name is part of a data set."""
    names = {WORK, BAD, ASIDE, "dataset_info.json", "features.json", "index", *card.FILES}
    return name in names or name.startswith("characters-train.array_record-")
