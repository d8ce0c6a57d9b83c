"""Norms of how far the average and the last weights of short runs go, as export says them.

    pip install -e '.[test]'
    python -m benchmarks.short_runs

Trains an adapter and a LoRA for 100 steps in the tests' toy world, and writes short_runs.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax

from ic_jax.measuring.origin import origin
from ic_jax.weights.model_folder import ModelFolder
from tests.toy import write_data, write_model
from train import averages
from train.export import read_state
from train.loop import train
from train.models import params_before
from train.recipe import Recipe, recipe_of

KINDS: dict[str, dict[str, Any]] = {"adapter": {"holdout": 0.0}, "lora": {"lora": {"rank": 4}}}
RESULTS = Path(__file__).with_suffix(".json")


def recipe(work: Path, kind: str) -> Recipe:
    return recipe_of(
        {name: str(work / name) for name in ("model", "data")}
        | {"out": str(work / kind), "dtype": "float32", "text_length": 16, "mesh": "data=1"}
        | {"reporting": {"preview_every": 0}, "saving": {"every": 100}}
        | {
            "stage1": {
                "steps": 100,
                "batch": 4,
                "resolution": 32,
                "warmup": 10,
                "learning_rate": 1e-3,
            }
        }
        | KINDS[kind]
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # type: ignore[union-attr]
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # which the tests' world forbids
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_model(work / "model")
        write_data(work)
        for kind in KINDS:
            settings = recipe(work, kind)
            train(settings)
            base = ModelFolder.open(settings.model)
            step, state = read_state(settings.out, settings, base)
            assert state.ema_params is not None
            ways = averages.ways(params_before(settings, base), state.ema_params, state.params)
            effective = averages.effective_steps(settings, step)
            results[kind] = ways._asdict() | {"steps": step, "effective steps": effective}
    RESULTS.write_text(json.dumps(results | origin("jax", "flax", "optax"), indent=1) + "\n")


if __name__ == "__main__":
    main()
