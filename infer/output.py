"""Pictures to disk: names, PNG metadata, whole files or none."""

import errno
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ic_jax.files import atomic_file

METADATA_KEY = "ic_jax"
ELSEWHERE = ("jax", "device")  # may differ between pictures of the same arguments


class Job(NamedTuple):
    """A picture to be drawn."""

    prompt: str
    seed: int
    file: Path


def jobs(out: Path, prompts: list[str], seeds: list[int]) -> list[Job]:
    """Every prompt with every seed; the file is `out` itself if there is only one.

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


def missing(asked: list[Job], metadata: Callable[[Job], dict[str, Any]]) -> list[Job]:
    """Those that are not there yet, drawn with the same arguments; ValueError if others are."""
    found = [job for job in asked if not _same(job, metadata(job))]
    existing = [str(job.file) for job in found if job.file.exists()]
    if existing:
        raise ValueError(
            f"{existing[0]} exists{f' and {len(existing) - 1} more' if existing[1:] else ''}, "
            "drawn otherwise; give --overwrite to replace, or another --out"
        )
    return found


def _same(job: Job, metadata: dict[str, Any]) -> bool:
    try:
        with Image.open(job.file) as picture:
            found = json.loads(picture.info[METADATA_KEY])
    except (OSError, KeyError, ValueError):
        return False
    expected = json.loads(json.dumps(metadata))
    return all(found.get(k) == v for k, v in expected.items() if k not in ELSEWHERE)


def prepare(asked: list[Job]) -> None:
    """Make the folder, rid of what a killed process left of these pictures; ValueError or OSError
    if they could not be written in the end."""
    wrong = next((job.file for job in asked if job.file.is_dir()), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is a folder; name a file, or leave out the ending .png")
    folder, names = asked[0].file.parent, {job.file.name for job in asked}
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
