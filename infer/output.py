"""Pictures to disk: names, PNG metadata, whole files or none."""

import json
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

METADATA_KEY = "ic_jax"


def names(out: Path, prompts: list[str], seeds: list[int]) -> list[list[Path]]:
    """A file for every prompt and seed: `out` itself if there is only one.

    `out` without the ending .png is a folder.
    """
    folder, stem = (out.parent, out.stem) if out.suffix.lower() == ".png" else (out, None)
    if stem and len(prompts) * len(seeds) == 1:
        return [[out]]

    def name(i: int, seed: int) -> Path:
        words = re.sub(r"[^\w]+", "-", prompts[i].lower())[:40].strip("-") or "picture"
        return folder / f"{stem or words}-{i:03d}-seed{seed}.png"

    return [[name(i, seed) for seed in seeds] for i in range(len(prompts))]


def refuse_existing(files: list[list[Path]]) -> None:
    existing = [str(f) for row in files for f in row if f.exists()]
    if existing:
        raise ValueError(
            f"{existing[0]} exists{f' and {len(existing) - 1} more' if existing[1:] else ''}; "
            "give --overwrite to replace, or another --out"
        )


def save(image: Image.Image, file: Path, metadata: dict[str, Any]) -> None:
    """Write a PNG whose text chunk `ic_jax` tells how it was made; whole or not at all."""
    info = PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        image.save(part, format="PNG", pnginfo=info)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
