"""The card of a data set: what is in it, for programs and for people; and its index."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ic_jax.version import __version__
from train.data.errors import DataError
from train.data.records import FEATURES
from train.data.shards import WORK, Shard
from train.data.sources import Rejected

CARD, TEXT = "card.json", "card.md"
FILES = (CARD, TEXT)
INDEX = "index"


def write(
    folder: Path, shards: list[Shard], bad: list[Rejected], resolutions: tuple[int, ...]
) -> None:
    """Write all that is not shards: tensorflow-datasets' metadata, the index, the card, last.

    Raises:
        DataError: the shards hold no record at all.
    """
    if not any(shard.characters for shard in shards):
        raise DataError(f"{folder}: not one picture can be used")
    _write_metadata(folder, shards)
    characters = sorted({name for shard in shards for name in shard.characters})
    number = {name: n for n, name in enumerate(characters)}
    numbers = np.array([number[name] for shard in shards for name in shard.characters], np.int32)
    index = folder / INDEX
    index.mkdir(exist_ok=True)
    widths = np.array([w for shard in shards for w in shard.widths], np.int32)
    heights = np.array([h for shard in shards for h in shard.heights], np.int32)
    np.save(index / "character.npy", numbers)
    np.save(index / "width.npy", widths)
    np.save(index / "height.npy", heights)
    (index / "characters.json").write_text(json.dumps(characters))
    facts = _facts(shards, bad, np.bincount(numbers), widths, heights)
    facts["prepared_for"] = sorted(resolutions)
    facts["index"] = {
        name: path.stat().st_size for name, path in sorted((p.name, p) for p in index.iterdir())
    }
    facts["shards"] = [
        {"file": s.file, "records": len(s.characters), "bytes": s.size, "sha256": s.sha256}
        for s in shards
    ]
    (folder / TEXT).write_text(_text(facts))
    shutil.rmtree(folder / WORK)
    (folder / CARD).write_text(json.dumps(facts, indent=2) + "\n")


def summary(folder: Path) -> str:
    """One line for a terminal."""
    facts = json.loads((folder / CARD).read_text())
    return (
        f"{folder}: {facts['pictures']} pictures of {facts['characters']} characters, "
        f"{facts['in_pairs']} of them in pairs; {facts['bad']} bad; {len(facts['shards'])} shards"
    )


def _write_metadata(folder: Path, shards: list[Shard]) -> None:
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name="characters",
        split="train",
        filetype_suffix="array_record",
    )
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[len(shard.characters) for shard in shards],
        num_bytes=sum(shard.size for shard in shards),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=FEATURES,
        split_infos=[split],
        version="1.0.0",
        check_data=False,  # it would need TensorFlow
        description="Pictures of characters, prepared by ic_jax.",
    )


def _facts(
    shards: list[Shard],
    bad: list[Rejected],
    views: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
) -> dict[str, Any]:
    captions = np.array([n for shard in shards for n in shard.captions])
    sides = np.sqrt(widths.astype(np.float64) * heights)
    named = {
        field: Counter(name for shard in shards for name in getattr(shard, field) if name)
        for field in ("views", "styles")
    }
    return {
        "written_by": f"ic_jax {__version__}",
        "pictures": len(widths),
        "characters": len(views),
        "in_pairs": int(views[views >= 2].sum()),
        "characters_with_pairs": int((views >= 2).sum()),
        "masked": sum(shard.masked for shard in shards),
        "focused": sum(shard.focused for shard in shards),
        "bad": len(bad),
        "pictures_per_character": _spread(views),
        "side": _spread(sides),  # square root of the area, pixels
        "caption_length": _spread(captions),  # characters of text
        **{field: dict(counts.most_common(50)) for field, counts in named.items()},
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


def _text(facts: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {' | '.join(f'{x:g}' for x in facts[name].values())} |"
        for name in ("pictures_per_character", "side", "caption_length")
    )
    named = "".join(
        f"\n{field.capitalize()}, the most frequent: "
        + ", ".join(f"{name} ({count})" for name, count in list(facts[field].items())[:20])
        + ".\n"
        for field in ("views", "styles")
        if facts[field]
    )
    return f"""# Pictures of characters

{facts["pictures"]} pictures of {facts["characters"]} characters; {facts["in_pairs"]} of the
pictures, of {facts["characters_with_pairs"]} characters, have another picture of the same
character. {facts["masked"]} have a mask of their own, {facts["focused"]} name boxes to focus on.
{facts["bad"]} could not be used: `bad.jsonl` says why. Prepared for training at
{", ".join(map(str, facts["prepared_for"]))} pixels.

| | min | 5% | median | 95% | max | mean |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

Sides are square roots of areas in pixels, captions in characters of text.
{named}
It is a tensorflow-datasets folder: `tfds.builder_from_directory(folder).as_data_source("train")`
reads it, without TensorFlow. `image` and `mask` are image files' bytes; `card.json` has the
shards' sha256.
"""
