"""Reference effects of three runs in the tests' toy world: one that is good, two that went wrong.

    pip install -e '.[test]'
    python -m benchmarks.reference_effect WORK     # trains them in the folder WORK, or goes on

Writes reference_effect.json and the picture docs/reference-effect.png. The world is discs of 32 px,
each character of its own colour, on a base of random weights: it shows what the curves look like,
not how large they get.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ic_jax.measuring.origin import origin
from tests.toy import write_data, write_model
from train import chart
from train.chart import Chart
from train.effect import ANOTHER, EFFECT, SAME
from train.loop import train
from train.plot import read_metrics
from train.recipe import Recipe, recipe_of

RUNS: dict[str, dict[str, Any]] = {
    "good": {"paired": 1.0},  # another picture of the character is the reference
    "copies": {},  # each picture is its own reference, and carries its place as well as its colour
    "ignores": {"paired": 1.0, "learning_rate": 0.1},  # so high that nothing is learnt
}
TITLES = {
    "good": "good: the reference is another picture of the character",
    "copies": "copies: the reference is the target's own picture, for too long",
    "ignores": "ignores the reference: the learning rate is far too high",
}
RESULTS = Path(__file__).with_suffix(".json")
PICTURE = Path(__file__).parent.parent / "docs" / "reference-effect.png"


def recipe(work: Path, name: str) -> Recipe:
    return recipe_of(
        {
            "model": str(work / "model"),
            "data": str(work / "many" / "data"),
            "out": str(work / name),
            "dtype": "float32",
            "text_length": 16,
            "holdout": 0.2,
            "reporting": {"effect_every": 25, "preview_every": 0},
            "stage1": {"steps": 800, "batch": 8, "resolution": 32, "warmup": 20}
            | {"learning_rate": 1e-3}
            | RUNS[name],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("work", metavar="WORK", type=Path, help="folder to train in")
    work = parser.parse_args().work
    if not (work / "model").exists():
        write_model(work / "model")
    if not (work / "many").exists():
        (work / "many").mkdir()
        write_data(work / "many", characters=32, views=6)
    effects: dict[str, Any] = {}
    charts = []
    for name in RUNS:
        train(recipe(work, name))
        lines = [line for line in read_metrics(work / name) if EFFECT in line]
        keys = {"same picture": SAME, "another picture": ANOTHER}
        curves = {words: [(x["step"], x[key]) for x in lines] for words, key in keys.items()}
        charts.append(Chart(TITLES[name], curves))
        effects[name] = {
            key: [[x["step"], x[key]] for x in lines] for key in (EFFECT, SAME, ANOTHER)
        }
    RESULTS.write_text(json.dumps({"effects": effects, **origin("jax", "flax", "optax")}) + "\n")
    chart.picture(charts).save(PICTURE)


if __name__ == "__main__":
    main()
