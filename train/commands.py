"""Commands of `python -m train`; each imports its work when it runs, since some wait for JAX."""

import argparse
from collections.abc import Sequence
from typing import get_args

from ic_jax import cli
from ic_jax.cli import Command
from train.run_commands import EXPORT, PLOT, RUN, recipe_arguments, take_gpu_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, see `ic_jax.cli.run`."""
    description = "Train the adapter, or a style LoRA of FLUX, and prepare the data for it."
    return cli.main("python -m train", description, COMMANDS, arguments, default="run")


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    from train.data.options import DEFAULTS

    add = parser.add_argument
    kinds = "folder of pictures, or a list, table or tar of them (docs/data.md)"
    add("source", metavar="SOURCE", type=cli.path, help=kinds)
    add("--out", metavar="DATASET", type=cli.path, required=True, help="folder to write")
    usual = " and ".join(map(str, DEFAULTS.resolutions))
    pixels = f"resolution that training will use; repeat for several (default: {usual})"
    add("--resolution", type=int, metavar="PIXELS", action="append", help=pixels)
    add(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes (default: one per core, fewer where memory is short)",
    )
    shard = "pictures per file"
    add("--shard-size", type=int, metavar="N", default=DEFAULTS.shard_size, help=shard)
    share = "stop when more than this fraction of the pictures cannot be used"
    add("--max-bad", type=float, metavar="FRACTION", default=DEFAULTS.max_bad, help=share)
    key = "key or column that names the character; folder: each folder is one; file: each picture"
    add("--character", metavar="KEY", help=key)
    small = "leave out pictures with a side below this; else training enlarges them"
    add("--min-side", type=int, metavar="PIXELS", default=DEFAULTS.min_side, help=small)
    links = "read also what links lead to outside of SOURCE"
    add("--follow-links", action="store_true", help=links)
    runs = "program that prints the caption of the picture whose path is {}, or the last argument"
    add("--caption", metavar="COMMAND", help=runs)
    masks = "program that prints the mask of a picture as PNG, or writes it to {mask}"
    add("--mask", metavar="COMMAND", help=masks)
    cli.add_overwrite(parser, "DATASET if it exists")


def _prepare(args: argparse.Namespace) -> None:
    from train.data import card
    from train.data.options import DEFAULTS, PrepareOptions
    from train.data.prepare import prepare
    from train.data.sources.entries import SourceOptions

    options = PrepareOptions(
        tuple(args.resolution or DEFAULTS.resolutions),
        *(args.shard_size, args.max_bad, args.min_side),
        SourceOptions(args.character or "", not args.caption, args.follow_links),
        *(args.caption or "", args.mask or ""),
    )
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers {args.workers} is not a positive number")
    prepare(args.source, args.out, options, workers=args.workers, overwrite=args.overwrite)
    print(card.summary(args.out))


def _new_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DATASET", type=cli.path, help="folder that `train prepare` wrote")
    model = "MODEL folder to train on (default: the small model that comes with ic_jax)"
    add("--model", metavar="MODEL", type=cli.path, help=model)
    add("--lora", action="store_true", help="train a style LoRA instead of the adapter")
    fresh = "start a new adapter instead of training the model's further"
    add("--new-adapter", action="store_true", help=fresh)
    out = "file to write, which must not exist (default: standard output)"
    add("--out", metavar="RECIPE", type=cli.path, help=out)


def _new(args: argparse.Namespace) -> None:
    from train.new import command

    take_gpu_memory()
    command.run(args)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    folder = "folder of a data set or of a cache"
    parser.add_argument("folder", metavar="DATASET", type=cli.path, help=folder)


def _verify(args: argparse.Namespace) -> None:
    from train.data.verify import verify

    print(verify(args.folder))


def _captions_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DATASET", type=cli.path, help="folder of a data set")


def _captions(args: argparse.Namespace) -> None:
    from train.data.captions import describe

    print(describe(args.folder))


def _cache_arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    cli.add_overwrite(parser, "parts of the cache that were made with other settings")


def _cache(args: argparse.Namespace) -> None:
    from train.cache_command import fill
    from train.recipe import read_recipe

    fill(read_recipe(args.recipe, args.set), overwrite=args.overwrite)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    from ic_jax.models.layers import Remat
    from ic_jax.planning.topologies import TOPOLOGY_HELP
    from train.recipe import BASES

    add = parser.add_argument
    add(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        type=cli.path,
        help="TOML file whose stages are planned (default: one stage of the options below)",
    )
    cli.add_set(parser, "optimizer=adafactor")
    add("--model", type=cli.path, help="MODEL folder (default: the published sizes)")
    add("--topology", help=TOPOLOGY_HELP)
    add("--mesh", metavar="AXES", help="mesh axes, such as data=4,fsdp=64 (default: auto)")
    add("--base", choices=BASES, help="layout of the base over the devices (default: auto)")
    add("--resolution", type=int, metavar="PIXELS", help="side of a picture (default: 512)")
    batch = "samples per step, over all devices (default: 32)"
    add("--batch", type=int, metavar="N", help=batch)
    add("--accumulate", type=int, metavar="N", help="parts of a batch, in turn (default: 1)")
    remat = "what the backward pass recomputes instead of storing (default: blocks)"
    add("--remat", choices=get_args(Remat), help=remat)
    add("--text-length", type=int, metavar="N", help="captions' T5 tokens (default: 512)")
    add("--json", type=cli.path, metavar="FILE", help="also write the figures to a file")


def _plan(args: argparse.Namespace) -> None:
    from train import plan_command

    plan_command.run(args)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from ic_jax.measuring.sizes import NAMES

    add = parser.add_argument
    first = "TOML file whose first stage is measured, on random weights (default: as published)"
    add("recipe", metavar="RECIPE", nargs="?", type=cli.path, help=first)
    cli.add_set(parser, "stage1.remat=dots")
    add("--size", choices=NAMES, default="flux-dev", help="size of the models")
    several = "samples of a step, over all devices; several are measured one after the other"
    add("--batch", type=int, nargs="+", metavar="N", help=f"{several} (default: the stage's, or 1)")
    add("--samples", type=int, metavar="N", default=3, help="samples of every time")
    budget = "skip what the time that is left is too short for"
    add("--budget", type=float, metavar="SECONDS", help=budget)
    file = "write the results to a file after every number of samples"
    add("--json", type=cli.path, metavar="FILE", help=file)


def _bench(args: argparse.Namespace) -> None:
    from ic_jax.measuring.parts import Budget
    from ic_jax.measuring.sizes import size_of
    from train import bench
    from train.recipe import changed, read_recipe, recipe_of

    size = size_of(args.size)
    if args.recipe:
        recipe = read_recipe(args.recipe, args.set)
    else:
        values = dict.fromkeys(("model", "data", "out"), "random") | {
            "adapter": "instantcharacter",
            "text_length": size.text_length,
            "stage1": {"steps": 1, "batch": 1, "resolution": size.training_side},
        }
        recipe = recipe_of(changed(values, args.set))
    take_gpu_memory()
    batches = args.batch or [next(iter(recipe.stages.values())).batch]
    bench.run(recipe, args.size, batches, args.samples, Budget(args.budget), args.json)


COMMANDS = (
    RUN,
    Command(
        "prepare",
        "Convert captioned pictures of characters to a data set.",
        _prepare_arguments,
        _prepare,
        description="Convert captioned pictures, in folders, lists, tables or tars, to a data set "
        "(docs/data.md). The same command resumes after an interruption.",
    ),
    Command(
        "captions",
        "List the captions of a data set whose words tell one character from the others.",
        _captions_arguments,
        _captions,
    ),
    Command(
        "new",
        "Write a commented recipe for a data set, a model and these devices.",
        _new_arguments,
        _new,
        description="Write a recipe with every key, its default and where that comes from, sized "
        "for a data set, a model and the devices of this machine. It runs as it is.",
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
        "bench",
        "Measure how fast this machine trains, with random weights.",
        _bench_arguments,
        _bench,
        description="Measure a training step with random weights of a named size and the settings "
        "of a recipe (docs/benchmarks.md).",
    ),
    PLOT,
    EXPORT,
)
