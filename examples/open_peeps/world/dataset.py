"""Rendered characters as a folder of picture files, and as a data set for training."""

import json
import math
import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples.open_peeps.world.files import (
    MASK,
    PICTURE,
    WITHOUT_IDENTITY,
    WriteJob,
    write_character,
)
from examples.open_peeps.world.people import SPLITS
from examples.open_peeps.world.render import Identity
from ic_jax.files import atomic_folder, check_replaceable, locked
from train.workers import parallel_map

METADATA = "metadata.jsonl"
LIMITS = {
    "characters": (1, 10**9),
    "views": (0, 999),
    "people": (1, 2),  # no bucket is wider than two squares
    "size": (8, 4096),
    "seed": (0, 2**63),
}


@dataclass(frozen=True)
class Characters:
    """The characters to render; the same values give the same bytes."""

    count: int = 1000
    views: int = 8  # of each character, beside its reference
    size: int = 256  # pixels of a picture's side
    seed: int = 0
    split: str = "train"  # a key of SPLITS
    captions: str = WITHOUT_IDENTITY  # or WITH_IDENTITY
    people: int = 1  # in a picture, side by side in one view; of several there is no reference

    def __post_init__(self) -> None:
        values = (self.count, self.views, self.people, self.size, self.seed)
        for (name, (low, high)), value in zip(LIMITS.items(), values, strict=True):
            _check(name, value, low, high)
        if self.people > self.count:
            raise ValueError(f"--people is {self.people}; there are {self.count} characters")
        if self.people > 1 and not self.views:
            raise ValueError("--people 2 has no reference views; give --views 1 or more")
        if self.people > 1 and self.captions != WITHOUT_IDENTITY:
            raise ValueError("captions tell the identity of one person; take --people 1")

    def beside(self, people: list[Identity], number: int) -> tuple[tuple[Identity, ...], ...]:
        """Return who else is in the pictures of a person by number; nobody if one is alone."""
        if self.people == 1:
            return ()
        rng = np.random.default_rng((self.seed, number, 1))
        behind = rng.integers(1, len(people), self.views)
        return tuple((people[(number + n) % len(people)],) for n in behind)


def write_data_set(
    out: Path, characters: Characters, *, workers: int, overwrite: bool = False
) -> None:
    """Write the data set `out` atomically, for training at `characters.size` pixels."""
    from train.data import card  # needs an extra; --help works without it
    from train.data.prepare import PrepareOptions, is_ours, prepare

    # A row of several squares has the area of a square of a larger side.
    side = characters.size
    if characters.people > 1:
        side = 16 * math.ceil(side * characters.people**0.5 / 16)
    options, out = PrepareOptions(resolutions=(side,)), out.absolute()
    check_replaceable(out, overwrite, is_ours)
    work = out.with_name(f".{out.name}.drawn")
    check_replaceable(work, True, lambda name: name.startswith("source"))
    work.mkdir(parents=True, exist_ok=True)
    source = work / "source"
    with locked(work, f"{work}: another process is rendering there"):
        try:
            # A killed run may have left pictures of other arguments there: never reuse them.
            write_pictures(source, characters, workers=workers, overwrite=True)
            prepare(source, out, options, workers=workers, overwrite=overwrite)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(card.summary(out))


def write_pictures(
    out: Path, characters: Characters, *, workers: int, overwrite: bool = False
) -> None:
    """Write pictures, masks and metadata.jsonl into the folder `out`, atomically.

    Raises:
        ValueError: the split has fewer people than `characters.count`, or `workers` is too large.
        FileExistsError: `out` exists.
    """
    _check("workers", workers, 1, 1024)
    c = characters
    people = list(islice(SPLITS[c.split](c.seed), c.count))
    if len(people) < c.count:
        raise ValueError(f"--characters is {c.count}; the split {c.split} has {len(people)}")
    with atomic_folder(out, overwrite=overwrite, owns=_is_written_here) as folder:
        jobs = [
            WriteJob(
                *(folder, identity, (c.seed, number), c.views, c.size, c.captions),
                c.beside(people, number),
            )
            for number, identity in enumerate(people)
        ]
        with (folder / METADATA).open("w") as file:
            written = parallel_map(write_character, jobs, workers=workers, chunk=1)
            for lines in tqdm(written, total=len(jobs), unit="character"):
                file.writelines(json.dumps(line) + "\n" for line in lines)


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"--{name} is {value}; expected {low} to {high}")


def _is_written_here(name: str) -> bool:
    return name == METADATA or name.endswith((PICTURE, MASK))
