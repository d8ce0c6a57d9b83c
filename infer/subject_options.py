"""`--subject PICTURE[+PICTURE...][@REGION][:SCALE]`: one of a picture's subjects."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ic_jax import cli
from ic_jax.files import sha256_file
from ic_jax.preprocessing.images import read_rgb
from ic_jax.preprocessing.regions import NAMES, Region, region_weights


@dataclass(frozen=True)
class SubjectOption:
    """A subject as an option names it.

    Attributes:
        text: the option.
        pictures: files that show the character.
        region: name, box, or file of a mask.
        scale: None is that of `--subject-scale`.
    """

    text: str
    pictures: tuple[Path, ...]
    region: str | tuple[float, ...] | None = None
    scale: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the option is the path of a picture and nothing else."""
        return len(self.pictures) == 1 and self.region is None and self.scale is None

    @property
    def placing(self) -> tuple[float | None, Region | None]:
        """Scale and region, as `SubjectPrompt` takes them."""
        return self.scale, self.region

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the option names."""
        mask = isinstance(self.region, str) and self.region not in NAMES
        return (*self.pictures, *([Path(str(self.region))] if mask else []))

    def check(self) -> None:
        """Raise ValueError or ImageError for pictures or a region that cannot be used."""
        for picture in self.pictures:
            read_rgb(picture)
        if self.region is not None:
            region: Region = self.region
            region_weights(region, (64, 64))


def subject_option(text: str) -> SubjectOption:
    """Return what an argument of `--subject` names; the `type` of that option.

    A text that is the name of a file is that file, whatever signs its name has.
    """
    if _is_file(text):
        return SubjectOption(text, (cli.path(text),))
    rest, scale = _without_scale(text)
    pictures, region = (rest, "") if _is_file(rest) else _split_last(rest, "@")
    names = [pictures] if _is_file(pictures) else pictures.split("+")
    files = tuple(cli.path(name) for name in names)
    return SubjectOption(text, files, _region(text, region) if region else None, scale)


def metadata(subjects: Sequence[SubjectOption]) -> dict[str, object]:
    """Return what a picture tells about its subjects, as JSON values.

    A single picture has the keys `subject` and `subject_sha256`; anything else is told as the
    options that name it.
    """
    plain = subjects[0] if len(subjects) == 1 and subjects[0].is_plain else None
    several = () if plain is not None else subjects
    return {
        "subject": None if plain is None else str(plain.pictures[0]),
        "subject_sha256": None if plain is None else sha256_file(plain.pictures[0]),
        "subjects": [subject.text for subject in several],
        "subjects_sha256": [sha256_file(file) for subject in several for file in subject.files],
    }


def _is_file(text: str) -> bool:
    return bool(text) and "\0" not in text and cli.path(text).is_file()


def _without_scale(text: str) -> tuple[str, float | None]:
    rest, number = _split_last(text, ":")
    try:
        scale = float(number)
    except ValueError:  # a colon of the path
        return text, None
    if not 0 <= scale < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: the scale {number} is no number of at least 0")
    return rest, scale


def _split_last(text: str, sign: str) -> tuple[str, str]:
    """Return what precedes and what follows the last `sign`; all of a text without it."""
    before, found, after = text.rpartition(sign)
    return (before, after) if found else (text, "")


def _region(text: str, region: str) -> str | tuple[float, ...]:
    """Return a region's name, its box, or the file of its mask."""
    numbers = region.split(",")
    if region in NAMES or len(numbers) == 1:
        return region
    try:
        return tuple(map(float, numbers))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text}: the region {region} is neither one of {', '.join(NAMES)} nor LEFT,TOP,RIGHT,"
            "BOTTOM from 0 to 1 nor a mask's file"
        ) from None
