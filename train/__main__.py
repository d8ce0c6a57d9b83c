"""python -m train RECIPE | prepare | verify | cache | export | plan."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from ic_jax import cli, multihost

# Where each command's main is. It imports what it needs: preparing data must not wait for JAX.
COMMANDS = {
    "prepare": "train.data.prepare",
    "cache": "train.cache_command",
    "verify": "train.data.verify",
    "plan": "train.plan_command",
    "export": "train.export",
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    match arguments:
        case [name, *rest] if name in COMMANDS:
            return import_module(COMMANDS[name]).main(rest)
    return _train(arguments)


def _train(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train an adapter or a style LoRA by a recipe; the same command goes on where "
        "it stopped. Other commands: prepare, verify, cache, export and plan.",
    )
    parser.add_argument("recipe", type=Path, help="TOML file (docs/training.md)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="such as stage1.steps=2000"
    )
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument("--no-compile-cache", action="store_true", help="compile everything anew")
    multihost.add_options(parser)
    options = parser.parse_args(arguments)

    from ic_jax import compilation_cache
    from train.loop import train
    from train.recipe import read_recipe

    def command() -> None:
        multihost.initialize(options.coordinator, options.hosts, options.host)
        recipe = read_recipe(options.recipe, options.set)
        if not options.no_compile_cache:
            compilation_cache.enable()
        train(recipe)

    return cli.run(command, debug=options.debug)


if __name__ == "__main__":
    sys.exit(main())
