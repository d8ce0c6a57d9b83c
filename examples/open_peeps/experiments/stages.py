"""Comparison of stages 1 and 2 on held-out characters of the small world."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from examples.open_peeps.evaluation import generation, scores
from examples.open_peeps.evaluation.generation import Pictures
from examples.open_peeps.evaluation.origin import origin
from examples.open_peeps.evaluation.sheet import contact_sheet
from examples.open_peeps.evaluation.triples import Triple, held_out_triples
from examples.open_peeps.experiments.characters import prepare_characters
from ic_jax import InstantCharacterPipeline
from ic_jax.weights import loading
from train.export import export, recipe_in
from train.loop import train
from train.recipe import Recipe, read_recipe

HERE = Path(__file__).parent
STAGES = ("stage1", "stage2")
USUAL = 1.0  # subject scale, as in training
STRONG = 3.0  # subject scale at which adapter and prompt contend
WORDLESS = 50  # triples whose pictures of the empty prompt are scored
SHOWN = 8  # triples in the picture


def run(args: argparse.Namespace) -> None:
    """Train and measure both stages for every seed; write the results and the picture."""
    data = prepare_characters(args.work, args.characters, args.views)
    triples = held_out_triples("small", "held out", args.triples)
    prompted, unprompted, effects = _controls(args.model, triples), {}, {}
    for seed in args.seeds:
        out = args.work / f"run{seed}"
        folders = [f"model={args.model}", f"data={data}", f"seed={seed}", f"out={out}"]
        recipe = read_recipe(HERE / "stages.toml", [*folders, *args.set])
        recipe = _keep_stage_ends(recipe)
        for stage, model in _train(recipe).items():
            row = f"{stage} seed {seed}"
            pipe = InstantCharacterPipeline.from_pretrained(model, "float32")
            prompted[row] = generation.generate(pipe, triples, 0, name=row, subject_scale=USUAL)
            prompted[f"strong {row}"] = generation.generate(
                pipe, triples, 0, name=f"{row}, strong", subject_scale=STRONG
            )
            unprompted[row] = generation.generate(
                pipe,
                triples[:WORDLESS],
                0,
                name=f"{row}, no prompt",
                prompt=lambda _: "",
                subject_scale=USUAL,
            )
            effects[row] = reference_effect(recipe, stage)
    results = _summarise(prompted, unprompted, effects, triples, args.seeds) | {
        "settings": {n: getattr(args, n) for n in ("seeds", "set", "characters", "views")}
        | {"triples": args.triples, "recipe": _without_folders(recipe.to_dict())}
        | {"usual": USUAL, "strong": STRONG},
        "origin": origin(),
    }
    text = json.dumps(results, indent=1, default=str)
    (HERE / "stages.json").write_text(text + "\n")
    first = f"seed {args.seeds[0]}"
    columns = {f"{stage}, empty": unprompted[f"{stage} {first}"] for stage in STAGES}
    columns |= {f"{stage}, prompt": prompted[f"{stage} {first}"] for stage in STAGES}
    contact_sheet(triples[:SHOWN], columns).save(HERE / "stages.png")
    print(text)


def _keep_stage_ends(recipe: Recipe) -> Recipe:
    """Return the recipe with every stage's last checkpoint kept."""
    steps = recipe.stages["stage1"].steps
    return replace(recipe, saving=replace(recipe.saving, keep_every=steps))


def _train(recipe: Recipe) -> dict[str, Path]:
    """Return a MODEL for the end of each stage, from an earlier call or trained now."""
    ends = {n: first + recipe.stages[n].steps for n, first in recipe.first_steps().items()}
    models = {n: recipe.out.with_name(f"{recipe.out.name}-{n}") for n in ends}
    if (recipe.out / "recipe.json").exists() and recipe_in(recipe.out) != recipe:
        raise ValueError(f"{recipe.out} was trained by another recipe; name another WORK")
    if not all(model.exists() for model in models.values()):
        train(recipe)
        for stage, model in models.items():
            export(recipe.out, model, "float32", step=ends[stage], overwrite=True)
    return models


def _controls(model: Path, triples: list[Triple]) -> dict[str, Pictures]:
    """Generate with the base model alone, without subject and with identity in words."""
    base = loading.load_model(model, "float32")
    pipe = InstantCharacterPipeline(base)
    assert base.vae is not None
    return {
        "no subject": generation.generate(pipe, triples, 0, subject=False),
        "identity in words": generation.generate(
            pipe, triples, 0, prompt=lambda triple: triple.full_prompt, subject=False
        ),
    } | generation.exact(base.vae, triples, pipe.sampling.height)


def _summarise(
    prompted: dict[str, Pictures],
    unprompted: dict[str, Pictures],
    effects: dict[str, dict[str, float]],
    triples: list[Triple],
    seeds: list[int],
) -> dict[str, Any]:
    """Return the rates of the controls, and each stage's figures with their spread over seeds."""
    rates = scores.score_all(prompted, triples)
    copied = scores.reference_body_rates(unprompted, triples[:WORDLESS])
    results: dict[str, Any] = {
        "controls": {n: _rounded(row) for n, row in rates.items() if "seed" not in n}
    }
    for stage in STAGES:
        figures = []
        for seed in seeds:
            row = f"{stage} seed {seed}"
            strong = {f"{k}, strong": v for k, v in rates[f"strong {row}"].items()}
            empty = {"copied, empty prompt": copied[row]}
            figures.append(effects[row] | rates[row] | strong | empty)
        results[stage] = scores.spread(figures)
    return results


def reference_effect(recipe: Recipe, stage: str) -> dict[str, float]:
    """Return the reference effect at the end of a stage, on held-out characters."""
    last = recipe.first_steps()[stage] + recipe.stages[stage].steps
    lines = map(json.loads, (recipe.out / "metrics.jsonl").read_text().splitlines())
    at_end = [line for line in lines if line["step"] == last]
    names = ("reference effect", "loss/right reference", "loss/wrong reference")
    return {name: line[name] for line in at_end for name in names if name in line}


def _without_folders(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in ("model", "data", "out")}


def _rounded(rates: dict[str, float]) -> dict[str, float]:
    return {name: round(float(np.float64(value)), 4) for name, value in rates.items()}
