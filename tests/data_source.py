"""Sources of pictures for the tests of train/data: small pictures of noise in several formats."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from train.data.prepare import PrepareOptions, prepare

SIZES = [(64, 64), (64, 64), (48, 96), (96, 48), (64, 80)]  # width, height


def picture(seed: int, size: tuple[int, int] = (64, 64), alpha: bool = False) -> Image.Image:
    """Smooth noise, so that JPEG keeps it; with alpha, opaque in the middle half."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    if alpha:
        width, height = size
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 255
        image.putalpha(Image.fromarray(mask))
    return image


def source(folder: Path, characters: int = 12, views: int = 4) -> Path:
    """JSON Lines of characters with 1 to `views` pictures of several shapes and kinds."""
    folder.mkdir(parents=True)
    lines = []
    for c in range(characters):
        for v in range(1 + c % views):
            n = c * views + v
            kind = ("a.png", "b.jpg", "c.webp")[n % 3]
            file = f"{c:03d}_{v}_{kind}"
            picture(n, SIZES[n % len(SIZES)], alpha=n % 6 == 0).save(folder / file)
            lines.append(
                {"file": file, "caption": f"waving, view {n}", "character": f"c{c:03d}"}
                | {"view": f"v{v}", "style": "noise"}
            )
    path = folder / "pictures.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(**fields) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def prepared(folder: Path, **counts: int) -> Path:
    """A data set for resolutions up to 64, of several shards."""
    out = folder / "dataset"
    prepare(
        source(folder / "source", **counts), out, PrepareOptions((64,), shard_size=8), workers=1
    )
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
