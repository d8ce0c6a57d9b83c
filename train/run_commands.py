"""Commands of `python -m train` that train, and that read what was trained.

Each imports its work when it runs, since some wait for JAX.
"""

import argparse
import os
import shlex

from ic_jax import cli
from ic_jax.cli import Command


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that takes a recipe."""
    parser.add_argument(
        "recipe", metavar="RECIPE", type=cli.path, help="TOML file (docs/training.md)"
    )
    cli.add_set(parser, "stage1.steps=2000")
    cli.add_compile_cache(parser)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    restart = "begin again at step 0 in a run whose checkpoints are all damaged"
    parser.add_argument("--restart", action="store_true", help=restart)
    cli.add_multiprocess(parser)


def _run(args: argparse.Namespace) -> None:
    from train.loop import train
    from train.recipe import read_recipe
    from train.run_folder import Stopped

    take_gpu_memory()
    try:
        train(read_recipe(args.recipe, args.set), restart=args.restart)
    except Stopped as stopped:
        changes = [word for change in args.set for word in ("--set", change)]
        command = shlex.join(["python", "-m", "train", str(args.recipe), *changes])
        where = " on every process" if args.num_processes else ""
        raise Stopped(f"{stopped}; go on with: {command}{where}") from None


def take_gpu_memory() -> None:
    """Have JAX take 0.95 of a GPU, where it takes 0.75 by itself: a run has its GPUs alone."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=cli.path, metavar="RUN", help="folder of a training run")
    out = "MODEL folder to write, or FILE.safetensors for a LoRA"
    add("--out", type=cli.path, required=True, metavar="OUT", help=out)
    dtype = "dtype of the trained weights"
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help=dtype)
    add("--cast-base", action="store_true", help="cast the base to --dtype as well")
    add("--step", type=int, metavar="N", help="checkpoint to export (default: the newest)")
    last = "export the last weights instead of their moving average"
    add("--no-ema", action="store_true", help=last)
    push = (
        "also upload OUT to the Hugging Face Hub, as a private repository (`hf auth login` first)"
    )
    add("--push", metavar="ORG/NAME", default="", help=push)
    add("--public", action="store_true", help="make a new repository of --push public")
    cli.add_overwrite(parser, "OUT if it exists")
    cli.add_compile_cache(parser)
    cli.add_renamed(parser, whole="--cast-base", last="--no-ema")


def _export(args: argparse.Namespace) -> None:
    from train.export import export

    if args.public and not args.push:
        raise ValueError("--public says how to upload; give --push ORG/NAME as well")
    export(
        *(args.run, args.out, args.dtype),
        step=args.step,
        ema=not args.no_ema,
        cast_base=args.cast_base,
        overwrite=args.overwrite,
        push=args.push,
        public=args.public,
    )


def _plot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=cli.path, metavar="RUN", help="folder of a training run")


def _plot(args: argparse.Namespace) -> None:
    from train.plot import plot

    print("\n".join(map(str, plot(args.run))))


RUN = Command(
    "run",
    "Train an adapter or a style LoRA by a recipe.",
    _run_arguments,
    _run,
    description="Train an adapter or a style LoRA by a recipe. The same command resumes a run "
    "that was stopped.",
)

EXPORT = Command(
    "export",
    "Write the trained adapter as a MODEL folder, or the trained LoRA as a file.",
    _export_arguments,
    _export,
    description="Write a MODEL folder with the base of a run and its newest adapter, or the "
    "run's LoRA as a file that diffusers reads.",
)

PLOT = Command(
    "plot",
    "Draw a run's reference effect and loss as RUN/plot.png and RUN/plot.html.",
    _plot_arguments,
    _plot,
)
