"""Command line: make the small model from nothing within minutes."""

import argparse
from collections.abc import Sequence

import jax

from examples.open_peeps.train_all.config import LARGE, TOY
from ic_jax import cli
from ic_jax.planning.topologies import TOPOLOGY_HELP
from train.run_folder import StopRequest

DESCRIPTION = """
Make the small model from nothing: draw its data on the cores while the device trains the
autoencoder, then train image encoders, FLUX with its text encoders and the adapter through three
stages, each for its share of the minutes, choose the sampling settings, and evaluate. Interrupted
or killed, the same command goes on, also on another machine that has OUT.work.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `ic_jax.cli.run`)."""
    return cli.main(
        "python -m examples.open_peeps.train_all",
        "The small model from nothing, within minutes.",
        COMMANDS,
        arguments,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=cli.path, help="MODEL folder to write")
    parser.add_argument("--minutes", type=float, default=12.0, help="of all stages together")
    parser.add_argument(
        "--devices", choices=("cpu", "gpu", "tpu"), help="platform (default: JAX's choice)"
    )
    parser.add_argument("--toy", action="store_true", help="every stage at toy size, to try it")
    cli.add_compile_cache(parser)


def run(args: argparse.Namespace) -> None:
    """Train, or go on."""
    if args.minutes <= 0:
        raise ValueError(f"--minutes is {args.minutes}; give more than 0")
    if args.devices:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(args.devices, args.devices))
    jax.devices()  # before anything is written
    from examples.open_peeps.train_all.run import train_all

    with StopRequest() as request:
        train_all(args.out, TOY if args.toy else LARGE, args.minutes, lambda: request.wanted)


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", metavar="KIND:SHAPE", help=TOPOLOGY_HELP)
    parser.add_argument(
        "--minutes", metavar="M", type=float, nargs="+", default=[6.0, 12.0], help="to plan for"
    )
    parser.add_argument("--json", metavar="FILE", type=cli.path, help="also write the figures here")
    parser.add_argument("--toy", action="store_true", help="the toy sizes")


def plan(args: argparse.Namespace) -> None:
    """Compile every stage's step and print what fits the minutes."""
    from examples.open_peeps.train_all.arithmetic import report

    report(TOY if args.toy else LARGE, args.topology, args.minutes, args.json)


COMMANDS = (
    cli.Command(
        "run",
        "Make the small model, or go on with it.",
        _add_arguments,
        run,
        DESCRIPTION,
    ),
    cli.Command(
        "plan",
        "Compile every stage's step for a device that may be absent; print what fits the minutes.",
        _add_plan_arguments,
        plan,
    ),
)
