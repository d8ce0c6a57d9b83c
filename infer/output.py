"""Pictures on disk: their names, which of them are missing, and how they are written."""

import argparse
import errno
import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ic_jax import cli
from ic_jax.files import atomic_write, part_path
from infer.picture_file import FORMATS, can_write, check_metadata, encode, read_metadata

ELSEWHERE = ("jax", "device")  # may differ between pictures of the same arguments
FILE_ENDING = re.compile(r"\.\w*[A-Za-z]\w*")  # not that of a folder such as v0.9


class Job(NamedTuple):
    """A picture to draw."""

    prompt: str
    seed: int
    file: Path


class Destination(NamedTuple):
    """Target that `--out` names: a folder, or the file of a picture in one."""

    folder: Path
    stem: str | None = None  # None: pictures have names of their own
    ending: str = ".png"

    @property
    def file(self) -> Path:
        """The file of a single picture."""
        return self.folder / f"{self.stem}{self.ending}"


DEFAULT = Destination(Path(), "out")


def destination(text: str) -> Destination:
    """Return what an argument of `--out` names; the `type` of that option.

    An ending of `FORMATS` is a picture's. A folder is what exists as one, ends in a slash, or has
    no ending.
    """
    path, is_folder = cli.path(text), text.endswith(os.sep)
    if is_folder or (os.path.isdir(path) and path.suffix.lower() not in FORMATS):
        return Destination(path)
    if path.name.lower() in FORMATS:
        raise argparse.ArgumentTypeError(f"{text} has no name before its ending")
    if path.suffix.lower() in FORMATS:
        if not can_write(path.suffix.lower()):
            raise argparse.ArgumentTypeError(
                f"{text}: the installed Pillow cannot write {path.suffix}; "
                "`pip install -U pillow`, or end the name in .png"
            )
        return Destination(path.parent, path.stem, path.suffix)
    if FILE_ENDING.fullmatch(path.suffix):
        raise argparse.ArgumentTypeError(
            f"{text}: pictures are written as {', '.join(FORMATS)}, not {path.suffix}; "
            "end the name of a folder in /"
        )
    return Destination(path)


def picture_path(text: str) -> Path:
    """Return the file of a picture to write; the `type` of an option."""
    out = destination(text)
    if out.stem is None:
        raise argparse.ArgumentTypeError(f"{text} is no file; end its name in .png")
    return out.file


def jobs(out: Destination, prompts: list[str], seeds: list[int]) -> list[Job]:
    """Return a job for every prompt and seed; a single one has the file that `out` names.

    The other names follow from the picture's own prompt and seed, so that a picture keeps its name
    whatever else is drawn.
    """
    if out.stem is not None and len(prompts) * len(seeds) == 1:
        return [Job(prompts[0], seeds[0], out.file)]

    def name(prompt: str, seed: int) -> str:
        words = re.sub(r"[^\w]+", "-", prompt.lower())[:40].strip("-") or "picture"
        # Prompts that begin alike, or differ in punctuation, have different digests.
        digest = hashlib.sha256(prompt.encode(errors="surrogateescape")).hexdigest()[:8]
        parts = [*([out.stem] if out.stem is not None else []), words, digest, f"seed{seed}"]
        return "-".join(parts) + out.ending

    return [Job(p, seed, out.folder / name(p, seed)) for p in prompts for seed in seeds]


def free(file: Path) -> Path:
    """Return the first of NAME.png, NAME-2.png, NAME-3.png, ... that does not exist."""
    names = (file.with_stem(f"{file.stem}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([file], names) if not os.path.lexists(path))


def free_stem(out: Destination, prompts: list[str], seeds: list[int]) -> str:
    """Return the first of NAME, NAME-2, NAME-3, ... none of whose pictures exists."""
    stems = itertools.chain([out.stem], (f"{out.stem}-{n}" for n in itertools.count(2)))

    def is_free(stem: str) -> bool:
        pictures = jobs(out._replace(stem=stem), prompts, seeds)
        return not any(os.path.lexists(job.file) for job in pictures)

    return next(stem for stem in stems if stem is not None and is_free(stem))


def missing(jobs: Sequence[Job], metadata: Callable[[Job], dict[str, Any]]) -> list[int]:
    """Return the indices of the pictures that do not exist.

    Raises:
        ValueError: a picture exists that was made with other settings than its `metadata`.
    """
    indices = [i for i, job in enumerate(jobs) if not exists(job.file, metadata(job))]
    others = [str(jobs[i].file) for i in indices if jobs[i].file.exists()]
    if others:
        more = len(others) - 1
        were = f"and {more} more exist but were" if more else "exists but was"
        raise ValueError(
            f"{others[0]} {were} made with other settings; give --overwrite or another --out"
        )
    return indices


def exists(file: Path, metadata: dict[str, Any]) -> bool:
    """Return whether a picture exists and was made with these settings."""
    written = read_metadata(file)
    if written is None:
        return False
    expected = json.loads(json.dumps(metadata))
    return all(written.get(k) == v for k, v in expected.items() if k not in ELSEWHERE)


def prepare(jobs: Sequence[Job], metadata: Callable[[Job], dict[str, Any]]) -> None:
    """Create the folder, and remove the partial files of these pictures that a killed run left.

    Raises:
        ValueError: a picture's name is that of a folder or too long, or its arguments are more
            than its file can hold.
        OSError: the folder cannot be created or written to.
    """
    files = [job.file for job in jobs]
    wrong = next((file for file in files if os.path.isdir(file)), None)
    if wrong is not None:
        raise ValueError(
            f"{wrong} is a folder; name a file, or leave out the ending {wrong.suffix}"
        )
    folder, names = files[0].parent, {file.name for file in files}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})"
        raise PermissionError(errno.EACCES, reason, str(folder)) from None
    for job in jobs:
        _check_length(job.file)
        check_metadata(job.file, metadata(job))
    for part in folder.glob(".*.part"):
        if part.name[1:].rsplit(".", 2)[0] in names:
            part.unlink(missing_ok=True)


def _check_length(file: Path) -> None:
    """Raise ValueError if the file, or its name while it is written, is too long for the disk."""
    try:
        os.lstat(part_path(file))
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(
            f"{file}: a name of {len(os.fsencode(file.name))} bytes is too long for this file "
            "system; give --out a shorter one"
        ) from None


def save(image: Image.Image, file: Path, metadata: dict[str, Any], *, keep: bool = False) -> Path:
    """Write a picture that tells how it was made, whole or not at all; return its file.

    `keep` takes another name where a file of this one has come up meanwhile.
    """
    if keep:
        file = free(file)
    atomic_write(file, encode(image, file.suffix, metadata))
    return file
