"""Pictures on disk: their names, their PNG metadata, and atomic writing."""

import errno
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ic_jax.files import atomic_file

METADATA_KEY = "ic_jax"
ELSEWHERE = ("jax", "device")  # may differ between pictures of the same arguments


class Job(NamedTuple):
    """A picture to draw."""

    prompt: str
    seed: int
    file: Path


def jobs(out: Path, prompts: list[str], seeds: list[int]) -> list[Job]:
    """Return a job for every prompt and seed; a single one has `out` itself as file.

    `out` without the ending .png is a folder.
    """
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise ValueError(f"--out {out}: pictures are written as PNG; end the name in .png")
    folder, stem = (out.parent, out.stem) if out.suffix.lower() == ".png" else (out, None)
    if stem and len(prompts) * len(seeds) == 1:
        return [Job(prompts[0], seeds[0], out)]

    def name(i: int, seed: int) -> Path:
        words = re.sub(r"[^\w]+", "-", prompts[i].lower())[:40].strip("-") or "picture"
        return folder / f"{stem or words}-{i:03d}-seed{seed}.png"

    return [Job(p, seed, name(i, seed)) for i, p in enumerate(prompts) for seed in seeds]


def missing(jobs: Sequence[Job], metadata: Callable[[Job], dict[str, Any]]) -> list[int]:
    """Return the indices of the pictures that do not exist.

    Raises:
        ValueError: a picture exists that was made with other settings than its `metadata`.
    """
    indices = [i for i, job in enumerate(jobs) if not _exists(job, metadata(job))]
    others = [str(jobs[i].file) for i in indices if jobs[i].file.exists()]
    if others:
        more = len(others) - 1
        were = f"and {more} more exist but were" if more else "exists but was"
        raise ValueError(
            f"{others[0]} {were} made with other settings; give --overwrite or another --out"
        )
    return indices


def _exists(job: Job, metadata: dict[str, Any]) -> bool:
    """Return whether the picture exists and was made with these settings."""
    try:
        with Image.open(job.file) as picture:
            written = json.loads(picture.info[METADATA_KEY])
    except (OSError, KeyError, ValueError):
        return False
    expected = json.loads(json.dumps(metadata))
    return all(written.get(k) == v for k, v in expected.items() if k not in ELSEWHERE)


def prepare(jobs: Sequence[Job]) -> None:
    """Create the folder, and remove the partial files of these pictures that a killed run left.

    Raises:
        ValueError: a picture's name is that of a folder.
        OSError: the folder cannot be created or written to.
    """
    wrong = next((job.file for job in jobs if job.file.is_dir()), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is a folder; name a file, or leave out the ending .png")
    folder, names = jobs[0].file.parent, {job.file.name for job in jobs}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})"
        raise PermissionError(errno.EACCES, reason, str(folder)) from None
    for part in folder.glob(".*.part"):
        if part.name[1:].rsplit(".", 2)[0] in names:
            part.unlink(missing_ok=True)


def save(image: Image.Image, file: Path, metadata: dict[str, Any]) -> None:
    """Write a PNG whose text chunk `ic_jax` tells how it was made; whole or not at all."""
    info = PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    with atomic_file(file) as part:
        image.save(part, format="PNG", pnginfo=info)
