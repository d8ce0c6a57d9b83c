"""Comparison of the optimisers on held-out people, after the same steps."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.open_peeps.evaluation import generation, scores
from examples.open_peeps.evaluation.origin import origin
from examples.open_peeps.evaluation.triples import Triple, held_out_triples
from examples.open_peeps.experiments.stages import reference_effect
from examples.open_peeps.world.dataset import Characters, write_data_set
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline
from ic_jax.weights.model_folder import SMALL_MODEL
from train.cache_command import fill
from train.effect import effect_meter
from train.export import export, read_params
from train.loop import train
from train.recipe import Recipe, read_recipe
from train.setup import setup
from train.step_inputs import StepInputs

HERE, RESULTS = Path(__file__).parent, Path(__file__).with_suffix(".json")
WORLD = "peeps"
RUNS = {
    "adamw": ("optimizer=adamw",),
    "adamw-bfloat16": ("optimizer=adamw-bfloat16",),
    "adafactor": ("optimizer=adafactor",),
    "adamw, another seed": ("optimizer=adamw", "seed=1"),
}
STAGE = "stage1"
SHORT = ("steps=300", "batch=16", "b2=0.999")


def run(args: argparse.Namespace) -> None:
    """Train and score every run; write the results after each."""
    compare(args, RUNS, RESULTS)


def compare(args: argparse.Namespace, runs: Mapping[str, Sequence[str]], file: Path) -> None:
    """Train and score the runs, each with its changes to the recipe; write `file` after each."""
    data = args.work / "data"
    if not data.exists():
        write_data_set(data, Characters(args.characters, views=2, size=192), workers=1)
    triples = {p: held_out_triples(WORLD, p, args.triples) for p in WORLDS[WORLD].held_out}
    results: dict[str, Any] = {}
    for row, changes in runs.items():
        before = time.process_time()
        out = args.work / row.replace(", ", "-").replace(" ", "-")
        folders = [f"{n}={f}" for n, f in (("model", SMALL_MODEL), ("data", data), ("out", out))]
        recipe = _recipe([*folders, f"cache={args.work / 'cache'}", *changes, *args.set])
        fill(recipe, overwrite=False)
        train(recipe)
        results[row] = reference_effect(recipe, STAGE) | {"exported": _exported_effect(recipe)}
        if args.triples:
            results[row] |= _rates(recipe, triples, row)
        results[row] |= {"changes": list(changes)}
        results[row] |= {"processor seconds": round(time.process_time() - before)}
        print(row, json.dumps(results[row]))
        settings = {n: getattr(args, n) for n in ("triples", "characters")}
        settings |= {STAGE: _recipe([*folders, *args.set]).to_dict()[STAGE]}
        file.write_text(json.dumps(results | {"settings": settings} | origin(), indent=1) + "\n")


def _exported_effect(recipe: Recipe) -> dict[str, float]:
    """Return the reference effect of the weights that export writes, on the same batches."""
    opened = setup(recipe)
    meter = effect_meter(opened, STAGE, StepInputs(opened))
    assert meter is not None
    return meter.measure(read_params(recipe.out, recipe, opened.base)[1])


def _recipe(changes: list[str]) -> Recipe:
    short = [f"{STAGE}.{change}" for change in SHORT]
    recipe = read_recipe(HERE / "peeps.toml", [*short, *changes])
    return replace(recipe, stages={STAGE: recipe.stages[STAGE]})


def _rates(recipe: Recipe, triples: dict[str, list[Triple]], row: str) -> dict[str, Any]:
    """Return the rates of the trained adapter, by kind of people."""
    model = recipe.out.with_name(f"{recipe.out.name}-model")
    export(recipe.out, model, "float32", cast_base=True, overwrite=True)
    pipe = InstantCharacterPipeline.from_pretrained(model, "float32")
    return {
        people: scores.score_all(
            {row: generation.generate(pipe, group, 0, name=f"{row}, {people}")}, group
        )[row]
        for people, group in triples.items()
    }
