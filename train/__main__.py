"""python -m train RECIPE | prepare | verify | cache | export | plan | peeps | foundations."""

import argparse
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

from ic_jax import cli, hosts

# Where each command's main is. It imports what it needs: preparing data must not wait for JAX.
COMMANDS = {
    "prepare": "train.data.prepare",
    "peeps": "train.peeps.dataset",
    "foundations": "train.foundations.command",
    "cache": "train.fill_cache",
    "verify": "train.data.verify",
    "plan": "train.plan",
    "export": "train.export",
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    match arguments:
        case ["prepare", "peeps", *rest]:
            return import_module(COMMANDS["peeps"]).main_prepare(rest)
        case [name, *rest] if name in COMMANDS:
            return import_module(COMMANDS[name]).main(rest)
    return _train(arguments)


def _train(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train an adapter or a style LoRA by a recipe; the same command goes on where "
        "it stopped. Other commands: prepare, verify, cache, export, plan, peeps, foundations.",
    )
    parser.add_argument("recipe", type=Path, help="TOML file (docs/training.md)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="such as stage1.steps=2000"
    )
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument("--no-compile-cache", action="store_true", help="compile everything anew")
    hosts.add_options(parser)
    options = parser.parse_args(arguments)

    from ic_jax import programs
    from train.loop import train
    from train.recipe import read_recipe

    def command() -> None:
        hosts.initialise(options.coordinator, options.hosts, options.host)
        recipe = read_recipe(options.recipe, options.set)
        with nullcontext() if options.no_compile_cache else programs.kept():
            train(recipe)

    return cli.run(command, debug=options.debug)


if __name__ == "__main__":
    sys.exit(main())
