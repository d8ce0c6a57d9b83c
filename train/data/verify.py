"""`python -m train verify`: comparison of the shards of a data set or cache with checksums."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ic_jax.files import sha256_file
from train.data.card import CARD
from train.data.dataset import Dataset
from train.data.encoded_store import FACTS, MANIFEST
from train.data.errors import DataError


def verify(folder: Path) -> str:
    """Compare every shard with its checksum; return one line that says how much was compared.

    Raises:
        DataError: shards are missing or differ from their checksums; the message names them.
    """
    shards = _shards(folder)

    def differs(shard: tuple[Path, dict[str, Any]]) -> str | None:
        path, recorded = shard
        if not path.is_file():
            return f"{path.name} (missing)"
        return None if sha256_file(path) == recorded["sha256"] else path.name

    with ThreadPoolExecutor() as pool:
        names = tqdm(pool.map(differs, shards), total=len(shards), unit="shard", disable=None)
        wrong = [name for name in names if name]
    if wrong:
        more = ", ..." if len(wrong) > 10 else ""
        raise DataError(
            f"{folder}: {len(wrong)} of {len(shards)} shards differ from their checksum: "
            f"{', '.join(wrong[:10])}{more}; copy or write them again"
        )
    if (folder / CARD).is_file():
        Dataset(folder)  # checks the index as well
    size = sum(recorded["bytes"] for _, recorded in shards)
    return f"{folder}: {len(shards)} shards, {size / 1e9:.2f} GB, all as they were written"


def _shards(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return path and recorded size and checksum of every shard of a data set or cache."""
    if (folder / CARD).is_file():
        shards = json.loads((folder / CARD).read_text())["shards"]
        return [(folder / shard["file"], shard) for shard in shards]
    parts = sorted(p.parent for p in folder.glob(f"*/{FACTS}") if p.parent.suffix != ".partial")
    if not parts:
        Dataset(folder)  # raises the error that says so
    return [
        (part / shard["file"], shard)
        for part in parts
        for shard in json.loads((part / MANIFEST).read_text())["shards"]
    ]
