"""Scores of the adapter at the end of each stage of one run."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.open_peeps.evaluation import generation, scores
from examples.open_peeps.evaluation.generation import Pictures
from examples.open_peeps.evaluation.origin import origin
from examples.open_peeps.evaluation.sheet import contact_sheet
from examples.open_peeps.evaluation.triples import Triple, held_out_triples
from examples.open_peeps.experiments.stages import reference_effect
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline
from train.export import export, recipe_in
from train.recipe import Recipe

WORLD = "peeps"
RESULTS = Path(__file__).with_suffix(".json")
SHOWN = 8  # triples in the picture


def run(args: argparse.Namespace) -> None:
    """Export, generate and score every stage's end; write the results and the picture."""
    recipe = replace(recipe_in(args.run), out=args.run)
    triples = {p: held_out_triples(WORLD, p, args.triples) for p in WORLDS[WORLD].held_out}
    results: dict[str, Any] = {}
    columns: dict[str, Pictures] = {}
    for stage in recipe.stages:
        model = _export_end(recipe, stage, args.work / stage)
        pipe = InstantCharacterPipeline.from_pretrained(model, "float32")
        rates, prompted, unprompted = _score_stage(pipe, triples, stage)
        columns |= {f"{stage}, empty": unprompted, f"{stage}, prompt": prompted}
        steps = recipe.stages[stage].steps
        results[stage] = {"steps": steps} | reference_effect(recipe, stage) | rates
        print(stage, json.dumps(results[stage]))
    first = next(iter(triples.values()))[:SHOWN]
    shown = {name: pictures[:SHOWN] for name, pictures in columns.items()}
    contact_sheet(first, shown).save(RESULTS.with_suffix(".png"))
    settings = {"triples": args.triples, "seed": 0, "recipe": _stage_tables(recipe)}
    RESULTS.write_text(json.dumps(results | settings | origin(), indent=1) + "\n")


def _export_end(recipe: Recipe, stage: str, model: Path) -> Path:
    """Write a MODEL with the adapter as it was at the end of a stage."""
    step = recipe.first_steps()[stage] + recipe.stages[stage].steps
    export(recipe.out, model, "float32", step=step, cast_base=True, overwrite=True)
    return model


def _score_stage(
    pipe: InstantCharacterPipeline, triples: dict[str, list[Triple]], stage: str
) -> tuple[dict[str, Any], Pictures, Pictures]:
    """Return the rates by kind of people, and the first kind's pictures with and without prompt."""
    results: dict[str, Any] = {}
    shown = []
    for people, group in triples.items():
        prompted = generation.generate(pipe, group, 0, name=f"{stage}, {people}")
        unprompted = generation.generate(
            pipe, group, 0, name=f"{stage}, no prompt", prompt=lambda _: ""
        )
        rates = scores.score_all({stage: prompted}, group)[stage]
        copied = scores.reference_body_rates({stage: unprompted}, group)[stage]
        results[people] = rates | {"copied, empty prompt": copied}
        shown.append((prompted, unprompted))
    return results, *shown[0]


def _stage_tables(recipe: Recipe) -> dict[str, Any]:
    values = recipe.to_dict()
    return {name: values[name] for name in (*recipe.stages, "adapter", "seed") if name in values}
