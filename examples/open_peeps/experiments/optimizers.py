"""Comparison of the optimisers on held-out people, after the same steps."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.open_peeps.evaluation import generation, scores
from examples.open_peeps.evaluation.origin import origin
from examples.open_peeps.evaluation.triples import Triple, held_out_triples
from examples.open_peeps.experiments.stages import reference_effect
from examples.open_peeps.world.dataset import Characters, write_data_set
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline, cli
from ic_jax.weights.model_folder import SMALL_MODEL
from train.cache_command import fill
from train.export import export
from train.loop import train
from train.recipe import Recipe, read_recipe

DESCRIPTION = """
Train a new adapter for the small model with each optimiser, and once more with AdamW from another
seed, which shows what chance does. All runs see the same pictures in the same order, as far as
their seed is the same: a short first stage of peeps.toml, at the default b2 of 0.999, where
bfloat16 is hardest. Each generates the same held-out people from the same noise; every answer is
the nearest exact render. A run that has ended is not repeated. Writes optimizers.json.
"""

HERE, RESULTS = Path(__file__).parent, Path(__file__).with_suffix(".json")
WORLD = "peeps"
RUNS = {
    "adamw": ("adamw", 0),
    "adamw-bfloat16": ("adamw-bfloat16", 0),
    "adafactor": ("adafactor", 0),
    "adamw, another seed": ("adamw", 1),
}
STAGE = "stage1"
SHORT = ("steps=300", "batch=16", "b2=0.999")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("work", metavar="WORK", type=cli.path, help="folder for data set and runs")
    parser.add_argument(
        "--triples", metavar="N", type=int, default=300, help="held-out people of each kind"
    )
    parser.add_argument(
        "--characters", metavar="N", type=int, default=3000, help="characters of the data set"
    )
    cli.add_set(parser, "stage1.steps=300")
    cli.add_compile_cache(parser)


def run(args: argparse.Namespace) -> None:
    """Train and score every run; write the results after each."""
    data = args.work / "data"
    if not data.exists():
        write_data_set(data, Characters(args.characters, views=2, size=192), workers=1)
    triples = {p: held_out_triples(WORLD, p, args.triples) for p in WORLDS[WORLD].held_out}
    results: dict[str, Any] = {}
    for row, (optimizer, seed) in RUNS.items():
        out = args.work / row.replace(", ", "-").replace(" ", "-")
        folders = [f"{n}={f}" for n, f in (("model", SMALL_MODEL), ("data", data), ("out", out))]
        chosen = [f"optimizer={optimizer}", f"seed={seed}", f"cache={args.work / 'cache'}"]
        recipe = _recipe([*folders, *chosen, *args.set])
        fill(recipe, overwrite=False)
        train(recipe)
        results[row] = reference_effect(recipe, STAGE) | _rates(recipe, triples, row)
        print(row, json.dumps(results[row]))
        settings = {n: getattr(args, n) for n in ("triples", "characters")}
        settings |= {STAGE: recipe.to_dict()[STAGE]}
        RESULTS.write_text(json.dumps(results | {"settings": settings} | origin(), indent=1) + "\n")


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
