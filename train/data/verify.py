"""`python -m train verify`: compare a data set's or a cache's shards with their checksums."""

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
    """One line that says how much was compared and found as it was written.

    Raises:
        DataError: files differ from their checksums, or are missing; names them.
    """
    shards = _shards(folder)

    def differs(shard: tuple[Path, dict[str, Any]]) -> str | None:
        path, facts = shard
        if not path.is_file():
            return f"{path.name} (missing)"
        return None if sha256_file(path) == facts["sha256"] else path.name

    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(differs, shards), total=len(shards), unit="shard", disable=None)
        bad = [name for name in found if name]
    if bad:
        more = ", ..." if len(bad) > 10 else ""
        raise DataError(
            f"{folder}: {len(bad)} of {len(shards)} shards differ from their checksum: "
            f"{', '.join(bad[:10])}{more}; copy or make them again"
        )
    if (folder / CARD).is_file():
        Dataset(folder)  # compares what else it needs
    size = sum(facts["bytes"] for _, facts in shards)
    return f"{folder}: {len(shards)} shards, {size / 1e9:.2f} GB, all as they were written"


def _shards(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every shard's path, and what is noted of it: of a data set, or of a cache's parts."""
    if (folder / CARD).is_file():
        noted = json.loads((folder / CARD).read_text())["shards"]
        return [(folder / shard["file"], shard) for shard in noted]
    parts = sorted(p.parent for p in folder.glob(f"*/{FACTS}") if p.parent.suffix != ".partial")
    if not parts:
        Dataset(folder)  # says what it is not
    return [
        (part / shard["file"], shard)
        for part in parts
        for shard in json.loads((part / MANIFEST).read_text())["shards"]
    ]
