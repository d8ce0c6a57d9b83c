"""Command line of the Open Peeps world: pictures as files, or a data set for `python -m train`."""

import argparse
import os
from collections.abc import Sequence

from examples.open_peeps.world.dataset import Characters, write_data_set, write_pictures
from examples.open_peeps.world.files import WITH_IDENTITY, WITHOUT_IDENTITY
from examples.open_peeps.world.people import SPLITS
from ic_jax import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `ic_jax.cli.run`)."""
    return cli.main(
        "python -m examples.open_peeps.world",
        "Render characters of Open Peeps, each in a reference view and in several others.",
        COMMANDS,
        arguments,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Characters()
    parser.add_argument(
        "--out", metavar="FOLDER", type=cli.path, required=True, help="folder to write"
    )
    parser.add_argument(
        "--characters", metavar="N", type=int, default=default.count, help="number of characters"
    )
    parser.add_argument(
        "--views",
        metavar="M",
        type=int,
        default=default.views,
        help="pictures of each character beside its reference",
    )
    parser.add_argument(
        "--people",
        metavar="N",
        type=int,
        default=default.people,
        help="people in a picture, side by side in one view, each in a square; several have no "
        "reference view",
    )
    parser.add_argument(
        "--size", metavar="PIXELS", type=int, default=default.size, help="side of a picture"
    )
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="selects the characters and their views"
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default=default.split,
        help="which people: those to train on, those held out, or those with held-out parts",
    )
    parser.add_argument(
        "--captions",
        choices=(WITHOUT_IDENTITY, WITH_IDENTITY),
        default=default.captions,
        help="whether captions describe hair, skin and glasses: without to train an adapter, "
        "with to train a base model",
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=os.cpu_count() or 1, help="processes"
    )
    cli.add_overwrite(parser, "an existing FOLDER that one of these commands wrote")


def _characters(args: argparse.Namespace) -> Characters:
    values = (args.characters, args.views, args.size, args.seed, args.split, args.captions)
    return Characters(*values, args.people)


def _prepare(args: argparse.Namespace) -> None:
    write_data_set(args.out, _characters(args), workers=args.workers, overwrite=args.overwrite)


def _write(args: argparse.Namespace) -> None:
    write_pictures(args.out, _characters(args), workers=args.workers, overwrite=args.overwrite)


COMMANDS = (
    cli.Command(
        "prepare",
        "Render characters into a data set for `python -m train`.",
        _add_arguments,
        _prepare,
    ),
    cli.Command(
        "write",
        "Render characters into a folder of PNG files, masks and captions.",
        _add_arguments,
        _write,
    ),
)
