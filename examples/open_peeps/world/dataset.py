"""Open Peeps characters as pictures and captions: `python -m train peeps` writes them as files,
`python -m train prepare peeps` makes the data set of them."""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from examples.open_peeps.world.files import (
    MASK,
    PICTURE,
    WITH_IDENTITY,
    WITHOUT_IDENTITY,
    Job,
    write_character,
)
from examples.open_peeps.world.people import SPLITS
from ic_jax import cli
from ic_jax.weights.atomic import check_replaceable, locked, written_whole
from train.data import card
from train.data.prepare import PrepareOptions, is_ours
from train.data.prepare import prepare as prepare_source
from train.workers import mapped

LINES = "metadata.jsonl"
LARGEST = 4096


def parser(command: str, out: str) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog=f"python -m train {command}", description=__doc__)
    top.add_argument("--out", metavar=out, type=Path, required=True)
    top.add_argument("--characters", metavar="N", type=int, default=1000)
    top.add_argument(
        "--views", metavar="M", type=int, default=8, help="pictures beside the reference"
    )
    top.add_argument("--size", metavar="PIXELS", type=int, default=256)
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--split", choices=SPLITS, default="train")
    top.add_argument(
        "--captions",
        choices=(WITHOUT_IDENTITY, WITH_IDENTITY),
        default=WITHOUT_IDENTITY,
        help="without for the adapter, with for a base model (default: %(default)s)",
    )
    top.add_argument("--workers", metavar="N", type=int, default=os.cpu_count() or 1)
    top.add_argument("--overwrite", action="store_true")
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """`train peeps`; returns its exit code, see `ic_jax.cli.run`."""
    args = parser("peeps", "SOURCE").parse_args(arguments)
    return cli.run(lambda: write(args), debug=args.debug)


def main_prepare(arguments: Sequence[str]) -> int:
    """`train prepare peeps`, likewise."""
    args = parser("prepare peeps", "DATASET").parse_args(arguments)
    return cli.run(lambda: prepare(args), debug=args.debug)


def prepare(args: argparse.Namespace) -> None:
    """Write DATASET whole or not at all, for training at `--size` pixels; the same arguments give
    the same bytes."""
    options, out = PrepareOptions(resolutions=(args.size,)), args.out.absolute()
    check_replaceable(out, args.overwrite, is_ours)
    work = out.with_name(f".{out.name}.drawn")
    check_replaceable(work, True, lambda name: name.startswith("source"))
    work.mkdir(parents=True, exist_ok=True)
    with locked(work, f"{work}: another process is drawing there"):
        try:
            # What a killed run left may be of other arguments.
            given = {**vars(args), "out": work / "source", "overwrite": True}
            write(argparse.Namespace(**given))
            prepare_source(
                work / "source", out, options, workers=args.workers, overwrite=args.overwrite
            )
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(card.summary(out))


def write(args: argparse.Namespace) -> None:
    """Write SOURCE whole or not at all; the same arguments give the same bytes."""
    for name, least, most in (
        ("characters", 1, 10**9),
        ("views", 0, 999),
        ("size", 8, LARGEST),
        ("seed", 0, 2**63),
        ("workers", 1, 1024),
    ):
        if not least <= (value := getattr(args, name)) <= most:
            raise ValueError(f"--{name} is {value}; expected {least} to {most}")
    identities = list(islice(SPLITS[args.split](args.seed), args.characters))
    if len(identities) < args.characters:
        raise ValueError(
            f"--characters is {args.characters}; the split {args.split} has {len(identities)}"
        )
    with written_whole(args.out, overwrite=args.overwrite, owns=_ours) as out:
        jobs = [
            Job(out, identity, (args.seed, number), args.views, args.size, args.captions)
            for number, identity in enumerate(identities)
        ]
        with (out / LINES).open("w") as lines:
            drawn = mapped(write_character, jobs, workers=args.workers, chunk=1)
            for metadata in tqdm(drawn, total=len(jobs), unit="character"):
                lines.writelines(json.dumps(line) + "\n" for line in metadata)


def _ours(name: str) -> bool:
    return name == LINES or name.endswith((PICTURE, MASK))
