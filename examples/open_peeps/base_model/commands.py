"""Command line of the base model: train it from random weights, or train a part of it further."""

import argparse
from collections.abc import Sequence

from examples.open_peeps.base_model import continue_training
from examples.open_peeps.base_model.config import PEEPS, SMALL, change
from examples.open_peeps.base_model.training import train_base_model
from ic_jax import cli

CONFIGS = {"small": SMALL, "peeps": PEEPS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `ic_jax.cli.run`)."""
    return cli.main(
        "python -m examples.open_peeps.base_model",
        "Train a base model for Open Peeps: VAE, FLUX, text and image encoders, without adapter.",
        COMMANDS,
        arguments,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="MODEL", type=cli.path, help="MODEL folder to write")
    parser.add_argument(
        "--world",
        choices=CONFIGS,
        default="peeps",
        help="peeps: all people, in plain English; small: 2592 people, one word per attribute",
    )
    cli.add_set(parser, "vae_steps=100")
    cli.add_overwrite(parser, "an existing MODEL")
    cli.add_compile_cache(parser)


def train(args: argparse.Namespace) -> None:
    """Train and write a MODEL folder."""
    train_base_model(args.out, change(CONFIGS[args.world], args.set), overwrite=args.overwrite)


COMMANDS = (
    cli.Command(
        "train",
        "Train a base model from random weights.",
        _add_arguments,
        train,
        "Train a base model from random weights. Finished parts are kept in MODEL.parts; "
        "interrupted, the same command resumes.",
    ),
    cli.Command(
        "continue",
        "Continue to train one part of a small model.",
        continue_training.add_arguments,
        continue_training.run,
        continue_training.DESCRIPTION,
    ),
)
