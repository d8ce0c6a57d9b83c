"""Work of `python -m train new`: write a recipe to standard output, or to a file."""

import argparse
import sys
from pathlib import Path

from ic_jax.files import atomic_write
from ic_jax.version import __version__
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from train.data.card import CARD
from train.data.dataset import Dataset
from train.data.errors import DataError
from train.new.memory_fit import Devices, Fit, fitted
from train.new.recipe_text import recipe_text
from train.new.sizing import draft, resolutions
from train.plan_command import model_shapes
from train.recipe import recipe_of


def run(args: argparse.Namespace) -> None:
    """Write the recipe.

    Raises:
        DataError: DATA is no prepared data set; says how to prepare it.
        FileExistsError: the file exists.
        ShardingError: no mesh of the devices holds the model, whatever the settings.
    """
    if args.out and args.out.exists():
        raise FileExistsError(f"{args.out}: exists; name another file")
    model = ModelFolder.open(args.model or SMALL_MODEL)
    dataset = _open(args.data, model)
    devices = Devices.here()
    run_folder = Path("runs", args.out.stem if args.out else dataset.path.resolve().name)
    sizes = draft(dataset, model, run_folder, devices, lora=args.lora, new=args.new_adapter)
    recipe = recipe_of(sizes.values)
    fit = fitted(recipe, model_shapes(recipe), devices)
    header = _header(args, fit, devices)
    text = recipe_text(fit.recipe, sizes.reasons | _reasons(fit), header)
    if not fit.fits:
        print(f"warning: {_memory(fit, devices)}, which is too much", file=sys.stderr)
    if args.out is None:
        print(text, end="")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out, text.encode())
    print(f"{args.out}: train with `python -m train {args.out}`")


def _open(path: Path, model: ModelFolder) -> Dataset:
    """Return the data set; DataError with the command that prepares it, if it is a source."""
    if not path.exists() or (path / CARD).exists():
        return Dataset(path)
    sides = "".join(f" --resolution {side}" for side in resolutions(model))
    out = Path("data", path.resolve().stem)
    raise DataError(
        f"{path}: is not prepared; run `python -m train prepare {path} --out {out}{sides}`, then "
        f"`python -m train new {out}`"
    )


def _reasons(fit: Fit) -> dict[str, str]:
    """Return the reasons of what the devices' memory has changed, by path."""
    changed = {"optimizer": fit.recipe.optimizer != "adamw", "cache": bool(fit.recipe.cache)}
    for name, stage in fit.recipe.stages.items():
        changed |= {f"{name}.accumulate": stage.accumulate > 1, f"{name}.ema": stage.ema == 0}
    return {path: "for the memory of these devices" for path, is_so in changed.items() if is_so}


def _header(args: argparse.Namespace, fit: Fit, devices: Devices) -> str:
    recipe = fit.recipe
    file = args.out or "first.toml"
    what = "A style LoRA" if recipe.lora else "An adapter"
    commands = [f"python -m train cache {file}"] if recipe.cache else []
    commands.append(f"python -m train {file}")
    plan = f"`python -m train plan {file}` compiles the step to know it"
    lines = [
        f"{what} for {recipe.data}, sized by `python -m train new` of ic_jax {__version__}.",
        *(f"    {command}" for command in commands),
        f"Devices: {devices}. Estimated: {_memory(fit, devices)}; {plan}.",
        "Each key has its meaning, the source of its default, and why it differs from that.",
    ]
    return "\n".join(lines) + "\n"


def _memory(fit: Fit, devices: Devices) -> str:
    """Return the memory that a run needs, in words."""
    free = f" of {devices.memory / 1e9:.1f}" if devices.memory else ""
    return f"training needs {fit.needed / 1e9:.1f}{free} GB on each device"
