"""Commands of `python -m train`; each imports its work when it runs, since some wait for JAX."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ic_jax import cli
from ic_jax.cli import Command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, see `ic_jax.cli.run`."""
    description = "Train the adapter, or a style LoRA of FLUX, and prepare the data for it."
    return cli.main("python -m train", description, COMMANDS, arguments, default="run")


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="TOML file (docs/training.md)")
    cli.add_set(parser, "stage1.steps=2000")
    cli.add_compile_cache(parser)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe_arguments(parser)
    cli.add_multiprocess(parser)


def _run(args: argparse.Namespace) -> None:
    from train.loop import train
    from train.recipe import read_recipe

    train(read_recipe(args.recipe, args.set))


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    from train.data.prepare import PrepareOptions

    default = PrepareOptions()
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder, or JSON Lines file")
    parser.add_argument(
        "--out", metavar="DATASET", type=Path, required=True, help="folder to write"
    )
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="PIXELS",
        action="append",
        help="resolution that training will use, in pixels; repeat for several "
        f"(default: {' and '.join(map(str, default.resolutions))})",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read pictures (default: all cores)"
    )
    parser.add_argument(
        "--shard-size", type=int, metavar="N", default=default.shard_size, help="pictures per file"
    )
    parser.add_argument(
        "--max-bad",
        type=float,
        metavar="FRACTION",
        default=default.max_bad,
        help="stop when more than this fraction of the pictures cannot be used",
    )
    cli.add_overwrite(parser, "DATASET if it exists")


def _prepare(args: argparse.Namespace) -> None:
    from train.data import card
    from train.data.prepare import PrepareOptions, prepare

    options = PrepareOptions(
        tuple(args.resolution or PrepareOptions().resolutions), args.shard_size, args.max_bad
    )
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers {args.workers} is not a positive number")
    prepare(args.source, args.out, options, workers=args.workers, overwrite=args.overwrite)
    print(card.summary(args.out))


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DATASET", type=Path, help="folder of a data set or of a cache"
    )


def _verify(args: argparse.Namespace) -> None:
    from train.data.verify import verify

    print(verify(args.folder))


def _cache_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe_arguments(parser)
    cli.add_overwrite(parser, "parts of the cache that were made with other settings")


def _cache(args: argparse.Namespace) -> None:
    from train.cache_command import fill
    from train.recipe import read_recipe

    fill(read_recipe(args.recipe, args.set), overwrite=args.overwrite)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    from ic_jax.models.layers import Remat
    from train.recipe import BASES

    parser.add_argument(
        "--topology", help="devices, such as v5e:16x16 or v5p:4x4x4 (default: this machine)"
    )
    parser.add_argument(
        "--mesh", metavar="AXES", default="auto", help="mesh axes, such as data=4,fsdp=64"
    )
    parser.add_argument(
        "--base", default="auto", choices=BASES, help="keep the base whole on each device, or shard"
    )
    parser.add_argument("--resolution", type=int, default=512, help="pixels a side")
    parser.add_argument("--batch", type=int, default=32, help="samples per step, over all devices")
    parser.add_argument(
        "--accumulate", type=int, default=1, help="parts in which a batch is computed"
    )
    parser.add_argument(
        "--remat",
        default="blocks",
        choices=get_args(Remat),
        help="what the backward pass recomputes instead of storing",
    )
    parser.add_argument("--text-length", type=int, default=512, help="T5 tokens")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the figures to a file"
    )


def _plan(args: argparse.Namespace) -> None:
    from ic_jax.planning import compile_plan
    from train.plan_command import step_report

    compile_plan.show([step_report(args)], args.json)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="MODEL folder to write; for a LoRA FILE.safetensors",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the trained weights",
    )
    parser.add_argument("--cast-base", action="store_true", help="cast the base to --dtype as well")
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint to export (default: the newest)"
    )
    parser.add_argument(
        "--no-ema",
        action="store_true",
        help="export the last weights instead of their moving average",
    )
    cli.add_overwrite(parser, "OUT if it exists")
    cli.add_compile_cache(parser)
    cli.add_renamed(parser, whole="--cast-base", last="--no-ema")


def _export(args: argparse.Namespace) -> None:
    from train.export import export

    export(
        *(args.run, args.out, args.dtype),
        step=args.step,
        ema=not args.no_ema,
        cast_base=args.cast_base,
        overwrite=args.overwrite,
    )


COMMANDS = (
    Command(
        "run",
        "Train an adapter or a style LoRA by a recipe.",
        _run_arguments,
        _run,
        description="Train an adapter or a style LoRA by a recipe. The same command resumes a run "
        "that was stopped.",
    ),
    Command(
        "prepare",
        "Convert a folder of captioned pictures to a data set.",
        _prepare_arguments,
        _prepare,
        description="Convert a folder of captioned pictures, or a JSON Lines file that lists them, "
        "to a data set (docs/training.md). The same command resumes after an interruption.",
    ),
    Command(
        "verify",
        "Compare the files of a data set or of a cache with their checksums.",
        _verify_arguments,
        _verify,
    ),
    Command(
        "cache",
        "Run the frozen encoders over a data set once and store their outputs.",
        _cache_arguments,
        _cache,
        description="Run the text encoders and the VAE over a recipe's data set once and store "
        'their outputs in the folder that the recipe\'s key "cache" names; training then reads '
        "them instead of running the encoders.",
    ),
    Command(
        "plan",
        "Report the memory, arithmetic and communication of a training step on given devices.",
        _plan_arguments,
        _plan,
        description="Compile the training step at full size, also for devices that are not "
        "attached, and report the memory, arithmetic and communication of each device.",
    ),
    Command(
        "export",
        "Write the trained adapter as a MODEL folder, or the trained LoRA as a file.",
        _export_arguments,
        _export,
        description="Write a MODEL folder with the base of a run and its newest adapter, or the "
        "run's LoRA as a file that diffusers reads.",
    ),
)
