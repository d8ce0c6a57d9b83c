"""Readers of single files as a command, so that a damaged one costs no model: NAME FILE."""

from pathlib import Path

from ic_jax import cli
from ic_jax.preprocessing.images import read_rgb
from ic_jax.weights.lora.reading import read_lora
from train.recipe import read_recipe

READERS = {"recipe": read_recipe, "LoRA": read_lora, "picture": read_rgb}


def main(arguments: list[str]) -> int:
    """Read a file; return the exit code that a command would have."""
    name, file = arguments
    return cli.run(lambda: READERS[name](Path(file)))
