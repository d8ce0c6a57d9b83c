"""Shards of a data set: each written by one process, atomically, and resumed if finished."""

import errno
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter

from ic_jax.files import atomic_file, atomic_write, sha256_file
from ic_jax.preprocessing.images import ImageError
from train.data.ingest import TooSmall, fingerprint, ingest
from train.data.record_notes import RecordNote, RecordNotes
from train.data.records import serialize
from train.data.sources.entries import Entries, Rejected, SetAside

WORK = "work"  # folder of the notes on finished shards, in the partial data set
# Encoded pictures do not compress further; random access needs one record per group.
WRITER_OPTIONS = "group_size:1,uncompressed"
VERSION = 4  # version of the records; a change makes the shards of interrupted runs stale


class ShardJob(NamedTuple):
    """Shard to write: its pictures and its place."""

    out: Path
    root: Path
    entries: Entries
    resolution: int
    min_side: int
    number: int
    shards: int  # number of all shards

    @property
    def file(self) -> str:
        return f"characters-train.array_record-{self.number:05d}-of-{self.shards:05d}"


class Shard(NamedTuple):
    """Finished shard."""

    file: str
    fingerprint: str
    sha256: str
    size: int  # bytes
    records: RecordNotes
    rejected: list[Rejected]
    aside: list[SetAside]


def write_shard(job: ShardJob) -> Shard:
    """Write one shard, unless an earlier run has finished it from the same files."""
    path, notes = job.out / job.file, job.out / WORK / f"{job.number:05d}.json"
    key = fingerprint(job.root, job.entries, VERSION, job.resolution, job.min_side, job.file)
    if finished := _read_finished(path, notes, key):
        return finished
    notes.unlink(missing_ok=True)  # stale notes must not vouch for the new shard
    shard, records = _write(job, path, key)
    atomic_write(notes, json.dumps(shard._asdict() | {"records": records}).encode())
    return shard


def _write(job: ShardJob, path: Path, key: str) -> tuple[Shard, list[RecordNote]]:
    records, rejected, aside = [], [], []
    with atomic_file(path, job.out / WORK) as part, _writer(part) as writer:
        for entry in job.entries:
            try:
                record, alpha, look = ingest(job.root, entry, job.resolution, job.min_side)
            except TooSmall as error:
                aside.append(SetAside(entry.file, str(error)))
                continue
            except ImageError as error:
                rejected.append(Rejected(entry.file, str(error)))
                continue
            writer.write(serialize(record))
            shape, length = (record.width, record.height), len(record.caption)
            labels, marks = (record.view, record.style), (bool(record.mask), bool(record.focus))
            hashes = hashlib.sha256(record.image).hexdigest()[:16], look.hex()
            others = [subject.character for subject in record.subjects[1:]]
            traits = (*shape, length, *labels, *marks, alpha, *hashes, others)
            note = RecordNote(record.character, *traits)
            records.append(note)
    size, columns = path.stat().st_size, RecordNotes.of(records)
    shard = Shard(job.file, key, sha256_file(path), size, columns, rejected, aside)
    return shard, records


@contextmanager
def _writer(path: Path) -> Iterator[ArrayRecordWriter]:
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    try:
        yield writer
        writer.close()
    except RuntimeError as error:  # array_record raises it for a full disk
        raise OSError(errno.EIO, " ".join(str(error).split()), str(path)) from None


def _read_finished(path: Path, notes: Path, key: str) -> Shard | None:
    try:
        values = json.loads(notes.read_bytes())
        records = RecordNotes.of([RecordNote(*item) for item in values.pop("records")])
        shard = Shard(**values, records=records)
        if shard.fingerprint == key and path.stat().st_size == shard.size:
            return shard._replace(
                rejected=[Rejected(*item) for item in shard.rejected],
                aside=[SetAside(*item) for item in shard.aside],
            )
    except (OSError, ValueError, TypeError):
        pass  # missing or damaged notes: the shard is written again
    return None
