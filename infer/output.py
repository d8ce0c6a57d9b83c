"""Pictures to disk: names, PNG metadata, whole files or none."""

import errno
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

METADATA_KEY = "ic_jax"


def names(out: Path, prompts: list[str], seeds: list[int]) -> list[list[Path]]:
    """A file for every prompt and seed: `out` itself if there is only one.

    `out` without the ending .png is a folder.
    """
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise ValueError(f"--out {out}: pictures are written as PNG; end the name in .png")
    folder, stem = (out.parent, out.stem) if out.suffix.lower() == ".png" else (out, None)
    if stem and len(prompts) * len(seeds) == 1:
        return [[out]]

    def name(i: int, seed: int) -> Path:
        words = re.sub(r"[^\w]+", "-", prompts[i].lower())[:40].strip("-") or "picture"
        return folder / f"{stem or words}-{i:03d}-seed{seed}.png"

    return [[name(i, seed) for seed in seeds] for i in range(len(prompts))]


def prepare(files: list[list[Path]], *, overwrite: bool) -> None:
    """Make the folders; ValueError or OSError if the pictures could not be written in the end."""
    flat = [file for row in files for file in row]
    wrong = next((f for f in flat if f.is_dir()), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is a folder; name a file, or leave out the ending .png")
    existing = [str(f) for f in flat if f.exists()]
    if existing and not overwrite:
        raise ValueError(
            f"{existing[0]} exists{f' and {len(existing) - 1} more' if existing[1:] else ''}; "
            "give --overwrite to replace, or another --out"
        )
    folder = flat[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})"
        raise PermissionError(errno.EACCES, reason, str(folder)) from None


def save(image: Image.Image, file: Path, metadata: dict[str, Any]) -> None:
    """Write a PNG whose text chunk `ic_jax` tells how it was made; whole or not at all."""
    info = PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        image.save(part, format="PNG", pnginfo=info)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
