"""What stages 1 and 2 do, measured on held-out characters of a small world.

    python -m train foundations MODEL
    python -m examples.open_peeps.experiments.stages MODEL WORK --seeds 0 1 2

Stage 1 reconstructs a picture from itself, without words, so all of it, the pose too, is taken
from the reference; stage 2 pairs two pictures of one character, so that the pose must come from
the prompt. Both are trained by `python -m train` from the same base for every seed, and asked to
draw the same held-out characters in the same new views from the same noise:

- told what to draw, at the adapter's usual strength and at a higher one, where what the adapter
  has learnt of poses contends with the prompt;
- told nothing, where the pose is the adapter's alone.

Every answer is the nearest exact render (`evaluation.measure`). Writes stages.json
and stages.png.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.origin import origin
from examples.open_peeps.evaluation import drawing, scores
from examples.open_peeps.evaluation.drawing import Pictures
from examples.open_peeps.evaluation.sheet import sheet
from examples.open_peeps.evaluation.triples import Triple, triples
from examples.open_peeps.experiments.characters import prepared
from ic_jax import InstantCharacterPipeline
from ic_jax.weights import loading
from train.export import export, recipe_in
from train.loop import train
from train.recipe import Recipe, read_recipe

HERE = Path(__file__).parent
STAGES = ("stage1", "stage2")
USUAL = 1.0  # subject scale, which training has
STRONG = 3.0  # one at which adapter and prompt contend
WORDLESS = 50  # triples whose wordless pictures are read
SHOWN = 8  # triples in the picture


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.open_peeps.experiments.stages", description=__doc__
    )
    parser.add_argument("model", type=Path, help="MODEL folder of `train foundations`")
    parser.add_argument("work", type=Path, help="folder for data set and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="such as stage1.steps=300")
    parser.add_argument("--characters", type=int, default=900)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--triples", type=int, default=100)
    given = parser.parse_args()
    data = prepared(given.work, given.characters, given.views)
    asked = triples("small", "held out", given.triples)

    told, untold, facts = controls(given.model, asked), {}, {}
    for seed in given.seeds:
        out = given.work / f"run{seed}"
        changes = [f"model={given.model}", f"data={data}", f"seed={seed}", f"out={out}"]
        recipe = read_recipe(HERE / "stages.toml", [*changes, *given.set])
        recipe = keeping_ends(recipe)
        for name, model in trained(recipe).items():
            row = f"{name} seed {seed}"
            pipe = InstantCharacterPipeline.from_pretrained(model, "float32")
            told[row] = drawing.draw(pipe, asked, 0, name=row, subject_scale=USUAL)
            told[f"strong {row}"] = drawing.draw(
                pipe, asked, 0, name=f"{row}, strong", subject_scale=STRONG
            )
            untold[row] = drawing.draw(
                *(pipe, asked[:WORDLESS], 0),
                name=f"{row}, untold",
                prompt=lambda _: "",
                subject_scale=USUAL,
            )
            facts[row] = effect(recipe, name)
    results = report(told, untold, facts, asked, given.seeds) | {
        "settings": _without_folders(vars(given))
        | {"recipe": _without_folders(recipe.to_dict()), "usual": USUAL, "strong": STRONG},
        "origin": origin("jax", "flax"),
    }
    text = json.dumps(results, indent=1, default=str)
    (HERE / "stages.json").write_text(text + "\n")
    first = f"seed {given.seeds[0]}"
    columns = {f"{name}, untold": untold[f"{name} {first}"] for name in STAGES}
    columns |= {f"{name}, told": told[f"{name} {first}"] for name in STAGES}
    sheet(asked[:SHOWN], columns).save(HERE / "stages.png")
    print(text)


def keeping_ends(recipe: Recipe) -> Recipe:
    """With every stage's end among the checkpoints that stay."""
    steps = recipe.stages["stage1"].steps
    return replace(recipe, saving=replace(recipe.saving, keep_every=steps))


def trained(recipe: Recipe) -> dict[str, Path]:
    """A MODEL for the end of each stage, from an earlier call or trained now."""
    ends = {n: first + recipe.stages[n].steps for n, first in recipe.first_steps().items()}
    models = {n: recipe.out.with_name(f"{recipe.out.name}-{n}") for n in ends}
    if (recipe.out / "recipe.json").exists() and recipe_in(recipe.out) != recipe:
        raise SystemExit(f"{recipe.out} was trained by another recipe; name another WORK")
    if not all(model.exists() for model in models.values()):
        train(recipe)
        for name, model in models.items():
            export(recipe.out, model, "float32", step=ends[name], overwrite=True)
    return models


def controls(model: Path, asked: list[Triple]) -> dict[str, Pictures]:
    """The base without a subject, and told in words who it is; and what no model can better."""
    base = loading.load(model, "float32")
    pipe = InstantCharacterPipeline(base)
    assert base.vae is not None
    return {
        "no subject": drawing.draw(pipe, asked, 0, subject=False),
        "identity in words": drawing.draw(
            pipe, asked, 0, prompt=lambda one: one.full, subject=False
        ),
    } | drawing.exact(base.vae, asked, pipe.sampling.height)


def report(
    told: dict[str, Pictures],
    untold: dict[str, Pictures],
    facts: dict[str, dict[str, float]],
    asked: list[Triple],
    seeds: list[int],
) -> dict[str, Any]:
    """The controls' rates, and each stage's figures by seed with mean and standard deviation."""
    found, copied = scores.scored(told, asked), scores.copied(untold, asked[:WORDLESS])
    results: dict[str, Any] = {
        "controls": {n: _rounded(rates) for n, rates in found.items() if "seed" not in n}
    }
    for name in STAGES:
        figures = []
        for seed in seeds:
            row = f"{name} seed {seed}"
            strong = {f"{k}, strong": v for k, v in found[f"strong {row}"].items()}
            figures.append(facts[row] | found[row] | strong | {"copied, untold": copied[row]})
        results[name] = scores.spread(figures)
    return results


def effect(recipe: Recipe, stage: str) -> dict[str, float]:
    """The reference effect at the end of a stage, on held-out characters."""
    last = recipe.first_steps()[stage] + recipe.stages[stage].steps
    lines = map(json.loads, (recipe.out / "metrics.jsonl").read_text().splitlines())
    at = [line for line in lines if line["step"] == last]
    names = ("reference effect", "loss/right reference", "loss/wrong reference")
    return {name: line[name] for line in at for name in names if name in line}


def _without_folders(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in ("model", "data", "out", "work")}


def _rounded(rates: dict[str, float]) -> dict[str, float]:
    return {name: round(float(np.float64(value)), 4) for name, value in rates.items()}


if __name__ == "__main__":
    main()
