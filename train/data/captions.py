"""Check of captions: words that tell one character from the others.

The adapter is to learn from the reference what a character looks like. A caption that says it
(her name, her red hair) explains the picture without the reference.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from train.data.dataset import Dataset

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
OWN = 0.8  # share of a character's captions that a telling word is in, at least
OTHERS = 0.05  # share of the others' captions that it is in, at most


class Telling(NamedTuple):
    """Words that tell a character from the others, and its captions that hold one of them."""

    character: str
    words: list[tuple[str, int, int]]  # with the number of its and of the others' captions
    captions: list[int]  # numbers of its captions


def telling_words(characters: Sequence[str], captions: Sequence[str]) -> list[Telling]:
    """Return the characters that their captions tell by words, in the order of their names.

    A word, or two words in a row, tells a character if it is in at least `OWN` of its captions,
    two at least, and in at most `OTHERS` of the others'; of two captions, in none of the others'.

    Args:
        characters: character of each caption.
        captions: captions, in the same order.
    """
    of_character = defaultdict(list)
    for number, character in enumerate(characters):
        of_character[character].append(number)
    groups = {c: numbers for c, numbers in sorted(of_character.items()) if len(numbers) > 1}
    if len(of_character) < 2:
        return []
    # All words of ten million captions would fill the memory; those frequent somewhere do not.
    counts = {c: _frequent([captions[n] for n in numbers]) for c, numbers in _shown(groups.items())}
    everywhere = dict.fromkeys((term for frequent in counts.values() for term in frequent), 0)
    for caption in _shown(captions):
        for term in terms(caption) & everywhere.keys():
            everywhere[term] += 1
    result = []
    for character, numbers in groups.items():
        allowed = OTHERS * (len(captions) - len(numbers)) if len(numbers) > 2 else 0
        others = {term: everywhere[term] - count for term, count in counts[character].items()}
        telling = {term for term, count in others.items() if count <= allowed}
        # Of two words in a row, one that tells alone is enough.
        telling -= {term for term in telling if telling & ({*term.split()} - {term})}
        if telling:
            words = [(term, counts[character][term], others[term]) for term in sorted(telling)]
            hold = [n for n in numbers if not telling.isdisjoint(terms(captions[n]))]
            result.append(Telling(character, words, hold))
    return result


def _frequent(captions: list[str]) -> dict[str, int]:
    """Return the words that are in most captions of a character, with their numbers."""
    counts = Counter(term for caption in captions for term in terms(caption))
    least = max(2, OWN * len(captions))
    return {term: count for term, count in counts.items() if count >= least}


def _shown(items: Collection[Any]) -> Iterable[Any]:
    """Show the progress where it takes long."""
    return tqdm(items, unit="caption", desc="captions", mininterval=0.5, delay=2, leave=False)


def terms(caption: str) -> set[str]:
    """Return the words of a caption, and each two of them in a row, in small letters."""
    words = WORD.findall(caption.lower())
    return {*words, *map(" ".join, pairwise(words))}


def summarise(telling: list[Telling]) -> dict[str, Any]:
    """Return what a card says of telling captions."""
    example = f"{telling[0].character}: {telling[0].words[0][0]!r}" if telling else ""
    return {
        "captions": sum(len(item.captions) for item in telling),
        "characters": len(telling),
        "example": example,
    }


def describe(folder: Path) -> str:
    """Return the captions of a data set that tell their character, as lines for a terminal."""
    dataset = Dataset(folder)
    numbers = tqdm(range(len(dataset)), unit="caption", disable=None)
    records = [(r.character, r.caption, r.file) for r in map(dataset.read, numbers)]
    characters, captions, files = zip(*records, strict=True)
    telling = telling_words(characters, captions)
    lines, pictures = [], Counter(characters)
    for item in telling:
        own = pictures[item.character]
        words = (
            f"{word!r} in {count} of its {own} captions, {others} of the {len(files) - own} others"
            for word, count, others in item.words
        )
        lines.append(f"{item.character}: {'; '.join(words)}")
        lines += [f"    {files[number]}: {captions[number]}" for number in item.captions]
    counts, empty = summarise(telling), sum(not caption for caption in captions)
    lines.append(
        f"{folder}: {counts['captions']} of {len(files)} captions, of {counts['characters']} "
        f"characters, tell their character by words; {empty} are empty"
    )
    return "\n".join(lines)
