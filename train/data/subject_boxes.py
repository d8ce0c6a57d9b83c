"""The characters of a picture that shows several, each with the box around it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from train.data.boxes import Box, check_box
from train.limits import MAX_SUBJECTS

EXPECTED = (
    'expected a list of characters with their boxes, such as {"character": "ana", "box": [left, '
    "top, right, bottom]}, in pixels"
)


class SubjectBox(NamedTuple):
    """One of the characters of a picture."""

    character: str
    box: Box


def check_subjects(value: Any) -> tuple[SubjectBox, ...]:
    """Return the characters and boxes that a source gives; ValueError if they are none."""
    if not isinstance(value, list):
        raise ValueError(f"subjects is {value!r:.80}; {EXPECTED}")
    if len(value) > MAX_SUBJECTS:
        raise ValueError(f"subjects has {len(value)} characters, more than {MAX_SUBJECTS}")
    subjects = tuple(map(_subject, value))
    names = [subject.character for subject in subjects]
    if len(set(names)) < len(names):
        raise ValueError(f"subjects names a character twice: {', '.join(names)}")
    return subjects


def _subject(value: Any) -> SubjectBox:
    character = value.get("character") if isinstance(value, Mapping) else None
    if isinstance(character, int):
        character = str(character)
    if not isinstance(character, str) or not character.strip():
        raise ValueError(f"subjects has {value!r:.80}; {EXPECTED}")
    return SubjectBox(character.strip(), check_box(value.get("box"), "subjects", EXPECTED))


def put_first(subjects: tuple[SubjectBox, ...], character: str) -> tuple[SubjectBox, ...]:
    """Return the subjects with `character` first; ValueError where it is not among them."""
    first = [subject for subject in subjects if subject.character == character]
    if not first:
        names = ", ".join(subject.character for subject in subjects)
        raise ValueError(f"character is {character!r:.80}, which is none of its subjects: {names}")
    return (*first, *(subject for subject in subjects if subject.character != character))
