"""Card and index of a data set: its statistics, for programs and for people."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ic_jax.files import sha256_file
from ic_jax.version import __version__
from train.data.account import account_text, count_traits
from train.data.errors import DataError
from train.data.hashing import digest, hash_names
from train.data.record_notes import RecordNotes
from train.data.records import FEATURES
from train.data.shards import WORK, Shard

CARD, TEXT = "card.json", "card.md"
FILES = (CARD, TEXT)
INDEX = "index"
CHECKSUM = "checksum"  # key of the card's own
OTHERS = "others.npy"  # further characters of pictures of several; only where there are any
CHARACTER_HASH = "character_hash.npy"  # spares a run the names, millions of Python objects


def write(
    folder: Path, shards: list[Shard], resolutions: tuple[int, ...], account: dict[str, Any]
) -> None:
    """Write everything but the shards: tensorflow-datasets' metadata, the index, last the card.

    Args:
        account: what the card says of the source besides the statistics of its pictures.

    Raises:
        DataError: the shards hold no record.
    """
    if not any(len(shard.records) for shard in shards):
        raise DataError(f"{folder}: no picture of the source can be used")
    records = RecordNotes.join([shard.records for shard in shards])
    write_metadata(folder, shards)
    index = folder / INDEX
    index.mkdir(exist_ok=True)
    for column in ("character", "width", "height"):
        np.save(index / f"{column}.npy", getattr(records, column))
    if len(records.others):
        np.save(index / OTHERS, records.others)
    (index / "characters.json").write_text(json.dumps(records.characters))
    np.save(index / CHARACTER_HASH, hash_names(records.characters))
    card = _statistics(records) | account
    card |= count_traits(records, resolutions)
    card["prepared_for"] = sorted(resolutions)
    card["shards"] = [
        {"file": s.file, "records": len(s.records), "bytes": s.size, "sha256": s.sha256}
        for s in shards
    ]
    (folder / TEXT).write_text(_text(card), encoding="utf-8")
    shutil.rmtree(folder / WORK)
    card["written"] = _written(folder, {s.file for s in shards})
    card[CHECKSUM] = checksum(card)
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")


def checksum(card: dict[str, Any]) -> str:
    """Return the digest of a card's values but the checksum itself."""
    return digest({name: value for name, value in card.items() if name != CHECKSUM})


def _written(folder: Path, shards: Collection[str]) -> list[dict[str, Any]]:
    """Return name, size and SHA-256 of every file beside the shards."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return [
        {"file": n, "bytes": (folder / n).stat().st_size, "sha256": sha256_file(folder / n)}
        for n in names
        if n not in shards
    ]


def summary(folder: Path) -> str:
    """Return the statistics of a data set, and the account of its source, for a terminal."""
    card = json.loads((folder / CARD).read_text())
    pictures = (
        f"{folder}: {card['pictures']} pictures of {card['characters']} characters, "
        f"{card['in_pairs']} in pairs; {card['bad']} rejected; {len(card['shards'])} shards"
    )
    return "\n".join([pictures, *account_text(card)])


def write_metadata(folder: Path, shards: list[Shard]) -> None:
    """Write the files by which tensorflow-datasets finds the shards and reads the records."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name="characters",
        split="train",
        filetype_suffix="array_record",
    )
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[len(shard.records) for shard in shards],
        num_bytes=sum(shard.size for shard in shards),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=FEATURES,
        split_infos=[split],
        version="1.0.0",
        check_data=False,  # checking needs TensorFlow
        description="Pictures of characters, prepared by ic_jax.",
    )


def _statistics(records: RecordNotes) -> dict[str, Any]:
    shown = np.concatenate([records.character, records.others[:, 1]])
    per_character = np.bincount(shown, minlength=len(records.characters))
    sides = np.sqrt(records.width.astype(np.int64) * records.height)
    return {
        "written_by": f"ic_jax {__version__}",
        "pictures": len(records),
        "characters": len(per_character),
        "in_pairs": int((per_character[records.character] >= 2).sum()),
        "characters_with_pairs": int((per_character >= 2).sum()),
        "masked": records.masked,
        "focused": records.focused,
        "of_several": len(np.unique(records.others[:, 0])),
        "pictures_per_character": _spread(per_character),
        "side": _spread(sides),  # square root of the area, pixels
        "caption_length": _spread(records.caption),  # characters
        "views": dict(records.views.most_common(50)),
        "styles": dict(records.styles.most_common(50)),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return {
        "min": round(float(values.min()), 1),
        "p05": round(low, 1),
        "median": round(middle, 1),
        "p95": round(high, 1),
        "max": round(float(values.max()), 1),
        "mean": round(float(values.mean()), 2),
    }


def _text(card: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {' | '.join(f'{x:g}' for x in card[name].values())} |"
        for name in ("pictures_per_character", "side", "caption_length")
    )
    frequent = "".join(
        f"\n{field.capitalize()}, the most frequent: "
        + ", ".join(f"{name} ({count})" for name, count in list(card[field].items())[:20])
        + ".\n"
        for field in ("views", "styles")
        if card[field]
    )
    several = card["of_several"]
    groups = f" {several} show several characters, each in a box." if several else ""
    account = "\n".join(f"- {line}" for line in account_text(card))
    return f"""# Pictures of characters

{card["pictures"]} pictures of {card["characters"]} characters; {card["in_pairs"]} of the
pictures, of {card["characters_with_pairs"]} characters, have another picture of the same
character. {card["masked"]} have a separate mask, {card["focused"]} have focus boxes.{groups}
{card["bad"]} were rejected, for the reasons in `bad.jsonl`; `aside.jsonl` names the files that were
left out on purpose. Prepared for training at
{", ".join(map(str, card["prepared_for"]))} pixels.

| | min | 5% | median | 95% | max | mean |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

A side is the square root of the area in pixels; caption lengths are in characters.
{frequent}
{account}

This is a tensorflow-datasets folder: `tfds.builder_from_directory(folder).as_data_source("train")`
reads it without TensorFlow. `image` and `mask` are the bytes of image files; `card.json` lists the
SHA-256 of every other file, and holds its own.
"""
