"""Account of a source: what became of its files, and how many of its pictures harm a training."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from train.data.buckets import buckets, nearest_bucket
from train.data.duplicates import count_copies
from train.data.record_notes import RecordNotes
from train.data.sources import PictureSource
from train.data.sources.entries import Rejected, SetAside


def count_files(
    source: PictureSource, rejected: list[Rejected], aside: list[SetAside]
) -> dict[str, Any]:
    """Return what became of every file of a source; each is counted once.

    Args:
        source: as it was listed.
        rejected: pictures that turned out to be unusable.
        aside: pictures that were left out afterwards.
    """
    unused = {item.file for item in rejected + aside}
    bad = {item.file for item in source.rejected + rejected}
    masks, pictures = set[str](), 0
    for entry in source.entries:
        if entry.file in unused:
            continue
        if not entry.part:
            pictures += 1
            bad.discard(entry.file)
        if entry.mask:
            masks.add(entry.mask)
    if masks:
        named = (entry.file for entry in source.entries if not entry.part)
        masks.difference_update(file for file in named if file not in unused)
    bad -= masks
    # What follows a colon is a program's own words on one picture.
    reasons = Counter(item.reason.partition(":")[0] for item in source.aside + aside)
    return {
        "pictures": pictures + len(masks),
        "lists_captions_and_containers": source.helpers,
        "bad": sum((source.root / name).is_file() for name in bad),  # others are rows, or missing
        "set_aside": dict(reasons.most_common()),
        "others": source.others,
    }


def count_traits(records: RecordNotes, resolutions: Iterable[int]) -> dict[str, Any]:
    """Return how many pictures are empty of words, too small, or one picture again."""
    width, height = records.width, records.height
    enlarged = {}
    for resolution in sorted(resolutions):
        sizes = np.array(buckets(resolution))
        size = sizes[nearest_bucket(width, height, buckets(resolution))]
        enlarged[str(resolution)] = int(((size[:, 0] > height) | (size[:, 1] > width)).sum())
    by_character = np.argsort(records.character, kind="stable")
    ends = np.cumsum(np.bincount(records.character))
    exact = near = 0
    for of_character in np.split(by_character, ends[:-1]):
        copies = count_copies(records.stored[of_character], records.look[of_character])
        exact, near = exact + copies[0], near + copies[1]
    return {
        "empty_captions": int((records.caption == 0).sum()),
        "alpha_masks": records.alpha,
        "enlarged": enlarged,  # by resolution
        "duplicates": exact,  # of another picture of the character
        "near_duplicates": near,
    }


def account_text(card: dict[str, Any]) -> list[str]:
    """Return the account of a card as lines for people; none for cards of earlier versions."""
    if "files" not in card:
        return []
    files, pictures = card["files"], card["pictures"]
    aside, others = files["set_aside"], files["others"]
    lines = [
        f"files: {files['pictures']} pictures and masks, {files['lists_captions_and_containers']} "
        f"lists, captions and containers, {files['bad']} bad, {sum(aside.values())} set aside, "
        f"{sum(others.values())} no pictures{_kinds(others)}"
    ]
    lines += [f"{count} set aside: {reason}" for reason, count in aside.items()]
    if unknown := card["unknown_keys"]:
        lines.append(f"keys that are not known and passed over: {', '.join(unknown)}")
    counts = {
        "empty_captions": "have an empty caption",
        "alpha_masks": "have a mask in their own alpha channel",
        "duplicates": "are another picture of their character once more (stage 2 learns to copy)",
        "near_duplicates": "are nearly another picture of their character",
    }
    lines += [f"{card[k]} of {pictures} pictures {text}" for k, text in counts.items() if card[k]]
    lines += [
        f"{count} of {pictures} pictures are enlarged at {resolution} pixels; --min-side leaves "
        "small ones out"
        for resolution, count in card["enlarged"].items()
        if count
    ]
    telling = card["telling_captions"]
    if telling["captions"]:
        lines.append(
            f"{telling['captions']} of {pictures} captions tell their character by words, such as "
            f"{telling['example']}; python -m train captions lists them"
        )
    return lines


def _kinds(others: dict[str, int]) -> str:
    kinds = [f"{count} {suffix or 'without suffix'}" for suffix, count in others.items()]
    return f" ({', '.join(kinds[:6])}{', ...' if kinds[6:] else ''})" if kinds else ""
