"""Reference effect of a run that uses its reference, one that ignores it and one that copies it."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.open_peeps.evaluation.origin import origin
from examples.open_peeps.world.dataset import Characters, write_data_set
from ic_jax.files import atomic_write
from ic_jax.weights.model_folder import SMALL_MODEL
from train import chart
from train.cache_command import fill
from train.chart import Chart
from train.effect import ANOTHER, SAME
from train.loop import train
from train.recipe import Recipe, read_recipe
from train.run_folder import read_metrics

HERE, RESULTS = Path(__file__).parent, Path(__file__).with_suffix(".json")
FIGURE = HERE.parents[2] / "docs" / "reference-effect.svg"
STAGES = ("stage1", "stage2")
# Without words nothing but the reference tells what to draw. The averages go into nothing that is
# measured here.
SHORT = ("batch=16", "warmup=10", "ema=0", "text_dropout=1.0")
COMMON = (*(f"{stage}.{change}" for stage in STAGES for change in SHORT), "holdout=0.1")
COMMON += ("stage1.steps=100", "stage2.steps=200", "saving.every=20")
MEASURED = ("reporting.every=20", "reporting.effect_every=20", "reporting.effect_batches=12")
# Every picture is its own reference in the first stage, as it is in InstantCharacter's.
RUNS = {
    "uses the reference": ("stage2.paired=1.0",),
    "copies it": ("stage2.paired=0.0",),
    "ignores it": ("stage2.paired=1.0", *(f"{stage}.learning_rate=3e-3" for stage in STAGES)),
}
LINES = {"same picture": SAME, "another picture": ANOTHER}


def run(args: argparse.Namespace) -> None:
    """Train every run that has not ended; write the results after each, and the figure."""
    if not (data := args.work / "data").exists():
        write_data_set(data, Characters(args.characters, views=2, size=192), workers=1)
    results: dict[str, Any] = {}
    values = _recipe(args, "").to_dict()
    settings = {name: values[name] for name in ("seed", "holdout", "reporting", *STAGES)}
    settings |= {"characters": args.characters, "set": args.set}
    for name, changes in RUNS.items():
        recipe = _recipe(args, name)
        if not _has_ended(recipe):
            fill(recipe, overwrite=False)
            train(recipe)
        results[name] = {"changes": list(changes), "effect": _curves(recipe)}
        text = json.dumps(results | {"settings": settings} | origin(), indent=1)
        atomic_write(RESULTS, f"{text}\n".encode())
    atomic_write(FIGURE, f"{chart.svg(_charts(results))}\n".encode())


def _recipe(args: argparse.Namespace, name: str) -> Recipe:
    """Return the recipe of a run, or what all share for "": two changed stages of peeps.toml."""
    folders = {"data": args.work / "data", "cache": args.work / "cache"}
    folders |= {"model": SMALL_MODEL, "out": args.work / name.replace(" ", "-")}
    changes = [f"{key}={folder}" for key, folder in folders.items()]
    changes += [*COMMON, *MEASURED, *RUNS.get(name, ()), *args.set]
    recipe = read_recipe(HERE / "peeps.toml", changes)
    return replace(recipe, stages={stage: recipe.stages[stage] for stage in STAGES})


def _has_ended(recipe: Recipe) -> bool:
    return any(
        line["step"] == recipe.total_steps and SAME in line for line in read_metrics(recipe.out)
    )


def _curves(recipe: Recipe) -> dict[str, list[tuple[int, float]]]:
    """Return the measurements of a run, as steps and effects; a resumed run repeats none."""
    by_step = {line["step"]: line for line in read_metrics(recipe.out) if SAME in line}
    return {
        # New values are zero, and so is their effect.
        name: [(0, 0.0), *((step, round(by_step[step][key], 5)) for step in sorted(by_step))]
        for name, key in LINES.items()
    }


def _charts(results: Mapping[str, Any]) -> list[Chart]:
    """Return a chart of each run, all on one scale."""
    effects = {name: results[name]["effect"] for name in RUNS}
    every = [y for lines in effects.values() for line in lines.values() for _, y in line]
    scale = (0.0, min(every), max(every))
    return [Chart(name, lines, includes=scale) for name, lines in effects.items()]
