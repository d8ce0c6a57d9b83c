"""`python -m train verify`: comparison of all files of a data set or cache with checksums."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ic_jax.files import sha256_file
from ic_jax.from_dict import first_few
from train.data.card import CARD
from train.data.card_reading import read_card
from train.data.dataset import Dataset
from train.data.encoded_store import FACTS, read_manifest
from train.data.errors import DataError


def verify(folder: Path) -> str:
    """Compare every file with its checksum; return one line that says how much was compared.

    Raises:
        DataError: files are missing or differ from their checksums; the message names them.
    """
    files = _files(folder)

    def differs(item: tuple[Path, dict[str, Any]]) -> str | None:
        path, recorded = item
        if not path.is_file():
            return f"{path.name} (missing)"
        expected = recorded.get("sha256")  # none for the index of an earlier version
        return path.name if expected and sha256_file(path) != expected else None

    with ThreadPoolExecutor() as pool:
        names = tqdm(pool.map(differs, files), total=len(files), unit="file", disable=None)
        wrong = [name for name in names if name]
    if wrong:
        raise DataError(
            f"{folder}: {len(wrong)} of {len(files)} files differ from their checksum: "
            f"{first_few(wrong)}; copy or write them again"
        )
    if (folder / CARD).is_file():
        # Sizes and types of the index, which earlier versions have no checksum of.
        len(Dataset(folder).others)
    size = sum(recorded["bytes"] for _, recorded in files)
    return f"{folder}: {len(files)} files, {size / 1e9:.2f} GB, all as they were written"


def _files(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return path and recorded size and checksum of every file of a data set or cache."""
    if (folder / CARD).is_file():
        card = read_card(folder)
        return [(folder / file["file"], file) for file in card["shards"] + card["written"]]
    parts = sorted(p.parent for p in folder.glob(f"*/{FACTS}") if p.parent.suffix != ".partial")
    if not parts:
        Dataset(folder)  # raises the error that says so
    return [(part / shard["file"], shard) for part in parts for shard in read_manifest(part)]
