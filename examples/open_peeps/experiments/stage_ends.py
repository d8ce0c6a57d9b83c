"""What each stage of one run has made of the adapter, asked for held-out people.

    python -m train examples/open_peeps/experiments/peeps.toml \
        --set model=MODEL --set data=DATA --set out=RUN
    python -m examples.open_peeps.experiments.stage_ends RUN WORK --triples 100

The recipe keeps the checkpoint at each end (`saving.keep_every`). Each draws held-out people, told
what to draw; and told nothing, where the body is the adapter's alone. Every answer is the nearest
exact render (`evaluation.measure`). Writes stage_ends.json, and stage_ends.png with
the first people.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.origin import origin
from examples.open_peeps.evaluation import drawing, scores
from examples.open_peeps.evaluation.drawing import Pictures
from examples.open_peeps.evaluation.sheet import sheet
from examples.open_peeps.evaluation.triples import Triple, triples
from examples.open_peeps.experiments.stages import effect
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline
from train.export import export, recipe_in
from train.recipe import Recipe

WORLD = "peeps"
RESULTS = Path(__file__).with_suffix(".json")
SHOWN = 8  # triples in the picture


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.open_peeps.experiments.stage_ends", description=__doc__
    )
    parser.add_argument("run", type=Path, help="RUN folder")
    parser.add_argument("work", type=Path, help="folder for a MODEL of each stage's end")
    parser.add_argument("--triples", type=int, default=100)
    given = parser.parse_args()
    recipe = replace(recipe_in(given.run), out=given.run)
    asked = {name: triples(WORLD, name, given.triples) for name in WORLDS[WORLD].held_out}
    found: dict[str, Any] = {}
    columns: dict[str, Pictures] = {}
    for name in recipe.stages:
        model = _end(recipe, name, given.work / name)
        pipe = InstantCharacterPipeline.from_pretrained(model, "float32")
        figures, told, untold = _measured(pipe, asked, name)
        columns |= {f"{name}, untold": untold, f"{name}, told": told}
        steps = recipe.stages[name].steps
        found[name] = {"steps": steps} | effect(recipe, name) | figures
        print(name, json.dumps(found[name]))
    first = next(iter(asked.values()))[:SHOWN]
    sheet(first, {name: drawn[:SHOWN] for name, drawn in columns.items()}).save(
        RESULTS.with_suffix(".png")
    )
    settings = {"triples": given.triples, "seed": 0, "recipe": _stages(recipe)}
    RESULTS.write_text(json.dumps(found | settings | origin("jax"), indent=1) + "\n")


def _end(recipe: Recipe, stage: str, model: Path) -> Path:
    """The whole MODEL with the adapter as it was at the end of a stage."""
    step = recipe.first_steps()[stage] + recipe.stages[stage].steps
    export(recipe.out, model, "float32", step=step, cast_base=True, overwrite=True)
    return model


def _measured(
    pipe: InstantCharacterPipeline, asked: dict[str, list[Triple]], name: str
) -> tuple[dict[str, Any], Pictures, Pictures]:
    """Rates by the kind of people, and the pictures of the first kind, told and untold."""
    figures: dict[str, Any] = {}
    shown = []
    for people, these in asked.items():
        told = drawing.draw(pipe, these, 0, name=f"{name}, {people}")
        untold = drawing.draw(pipe, these, 0, name=f"{name}, untold", prompt=lambda _: "")
        rates = scores.scored({name: told}, these)[name]
        figures[people] = rates | {"copied, untold": scores.copied({name: untold}, these)[name]}
        shown.append((told, untold))
    return figures, *shown[0]


def _stages(recipe: Recipe) -> dict[str, Any]:
    values = recipe.to_dict()
    return {name: values[name] for name in (*recipe.stages, "adapter", "seed") if name in values}


if __name__ == "__main__":
    main()
