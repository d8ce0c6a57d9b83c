"""What stages 1 and 2 do, measured on held-out characters of a small world.

    python -m train foundations MODEL
    python -m experiments.stages MODEL WORK --seeds 0 1 2

Stage 1 reconstructs a picture from itself, so its pose is in the reference; stage 2 pairs two
pictures of one character, so that the pose must come from the prompt. Both are trained by
`train.loop.train` from the same base for every seed, and asked to draw the same held-out
characters in the same new views from the same noise. Every answer is the nearest exact render
(`train.peeps.measure`). Writes experiments/stages.json and experiments/stages.png.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import sheet
from experiments.characters import Triple, prepared, triples
from ic_jax import InstantCharacterPipeline, checkpoint
from ic_jax.version import __version__
from train.foundations.world import HELD, HELD_OUT, caption
from train.loop import Run
from train.peeps import measure
from train.peeps.render import picture
from train.recipe import Recipe, read_recipe
from train.run_folder import StopRequest, owned

HERE = Path(__file__).parent
SIDE, STEPS, TEXT_LENGTH = 64, 20, 16  # pixels; of sampling; tokens
CANDIDATES = 50  # of the identity question; chance is 2%
WORDLESS = 30  # triples whose wordless pictures are read
STAGES = ("stage1", "stage2")

Pictures = np.ndarray  # float32 [triples, 64, 64, 3] in 0..1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.stages", description=__doc__)
    parser.add_argument("model", type=Path, help="MODEL folder of `train foundations`")
    parser.add_argument("work", type=Path, help="folder for data set and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="such as stage1.steps=300")
    parser.add_argument("--characters", type=int, default=400)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--triples", type=int, default=100)
    parser.add_argument(
        "--drawn-only", action="store_true", help="report what earlier calls drew, train nothing"
    )
    given = parser.parse_args()
    data = prepared(given.work, given.characters, given.views)
    asked = triples(given.triples)
    changes = [f"model={given.model}", f"data={data}", *given.set]

    drawn: dict[str, Pictures] = controls(given.model, asked)
    wordless: dict[str, Pictures] = {}
    runs: dict[int, dict[str, Any]] = {}
    for seed in given.seeds:
        out = given.work / f"run{seed}"
        recipe = read_recipe(HERE / "stages.toml", [*changes, f"seed={seed}", f"out={out}"])
        if not given.drawn_only:
            train_and_draw(recipe, asked)
        pictures, runs[seed] = results_of(recipe)
        for name, (prompted, empty) in pictures.items():
            drawn[f"{name} seed {seed}"], wordless[f"{name} seed {seed}"] = prompted, empty
    scores = scored(drawn, asked)
    for name, share in copied(wordless, asked[:WORDLESS]).items():
        scores[name]["copied without a prompt"] = share
    results = {
        "controls": {name: scores[name] for name in drawn if "seed" not in name},
        **{name: _spread(name, runs, scores) for name in STAGES},
        "settings": vars(given) | {"recipe": recipe.to_dict(), "candidates": CANDIDATES},
        "conditions": _conditions(),
    }
    text = json.dumps(results, indent=1, default=str)
    (HERE / "stages.json").write_text(text + "\n")
    whole = next(seed for seed, run in runs.items() if len(run) == len(STAGES))
    first = {name: drawn[f"{name} seed {whole}"] for name in STAGES}
    sheet.draw(asked[:8], first).save(HERE / "stages.png")
    print(text)


def train_and_draw(recipe: Recipe, asked: list[Triple]) -> None:
    """Train stage after stage and draw after each, into RUN/STAGE.npz; goes on where it stopped."""
    ends = _ends(recipe)
    if all((recipe.out / f"{name}.npz").exists() for name in STAGES):
        return
    with owned(recipe.out), StopRequest() as stop:
        run = Run(recipe, stop)
        try:
            for name in STAGES:
                start = time.perf_counter()
                run.stage(name)
                if run.step == ends[name]:  # else it went on from a later one, and is drawn
                    seconds = round(time.perf_counter() - start)
                    kept = drawn_by(run, asked) | {"seconds": np.asarray(seconds)}
                    np.savez(recipe.out / f"{name}.npz", allow_pickle=False, **kept)
            run.save()
        finally:
            run.close()


def results_of(recipe: Recipe) -> tuple[dict[str, tuple[Pictures, Pictures]], dict[str, Any]]:
    """Pictures (of the prompts, of the empty prompt) and figures of a run's finished stages."""
    pictures, facts = {}, {}
    for name in STAGES:
        if (file := recipe.out / f"{name}.npz").exists():
            kept = np.load(file)
            pictures[name] = kept["pictures"], kept["wordless"]
            effect = _effect(recipe, _ends(recipe)[name])
            facts[name] = effect | {"seconds": int(kept["seconds"])}
    return pictures, facts


def _ends(recipe: Recipe) -> dict[str, int]:
    """The step that each stage ends with."""
    return {n: first + recipe.stages[n].steps for n, first in recipe.first_steps().items()}


def drawn_by(run: Run, asked: list[Triple]) -> dict[str, Pictures]:
    """What the run's averaged adapter draws: of the prompts, and of the empty prompt."""
    model = replace(run.models.model, adapter=run.state.average)
    pipe = InstantCharacterPipeline(model)
    wordless = pictures_of(pipe, asked, [""] * len(asked))
    return {"pictures": pictures_of(pipe, asked), "wordless": wordless}


def copied(wordless: dict[str, Pictures], asked: list[Triple]) -> dict[str, float]:
    """How often each row's pictures of the empty prompt show the reference's own body."""
    same: dict[str, list[bool]] = {name: [] for name in wordless}
    for n, one in enumerate(asked):
        pictures = np.stack([pictures[n] for pictures in wordless.values()])
        found = measure.read(pictures, one.identity, one.seen, [])
        for name, reading in zip(wordless, found, strict=True):
            same[name].append(reading.body == one.seen.body)
    return {name: round(float(np.mean(found)), 4) for name, found in same.items()}


def pictures_of(
    pipe: InstantCharacterPipeline,
    asked: list[Triple],
    prompts: list[str] | None = None,
    *,
    subject: bool = True,
) -> Pictures:
    """Draw what every triple asks for, each from noise of its own."""
    drawn = pipe(
        prompts or [caption(one.view) for one in asked],
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        seed=list(range(len(asked))),
        subject_image=[one.reference for one in asked] if subject else None,
        subject_scale=1.0,
        max_sequence_length=TEXT_LENGTH,
        output_type="np",
    )
    return np.asarray(drawn.images)


def controls(model: Path, asked: list[Triple]) -> dict[str, Pictures]:
    """The base without a subject, and told in words who it is; the true picture through the VAE;
    and the reference itself."""
    pipe = InstantCharacterPipeline.from_pretrained(model, dtype="float32")
    full = [caption(one.view, one.identity) for one in asked]
    true = np.stack([picture(one.identity, one.view, SIDE) for one in asked])
    vae = checkpoint.load_component(model, "vae")
    pixels = true.astype(np.float32) / 127.5 - 1
    back = jax.jit(lambda vae, x: vae.decode(vae.encode(x)[0]))(vae, pixels)
    return {
        "no subject": pictures_of(pipe, asked, subject=False),
        "identity in words": pictures_of(pipe, asked, full, subject=False),
        "true picture through the VAE": np.clip(np.asarray(back) / 2 + 0.5, 0, 1),
        "the reference itself": np.stack(
            [picture(one.identity, one.seen, SIDE) / np.float32(255) for one in asked]
        ),
    }


def scored(drawn: dict[str, Pictures], asked: list[Triple]) -> dict[str, dict[str, float]]:
    """Every row's rates; all pictures of a triple are read at once."""
    scores: dict[str, list[measure.Score]] = {name: [] for name in drawn}
    for n, one in enumerate(asked):
        rng = np.random.default_rng((n, 2))
        order = [HELD[k] for k in rng.permutation(len(HELD))]
        others = [other for other in order if other != one.identity][: CANDIDATES - 1]
        pictures = np.stack([pictures[n] for pictures in drawn.values()])
        for name, found in zip(
            drawn, measure.read(pictures, one.identity, one.view, others), strict=True
        ):
            scores[name].append(measure.score(found, one.identity, one.view, one.seen))
    return {
        name: {k: round(v, 4) for k, v in measure.rates(found).items()}
        for name, found in scores.items()
    }


def _effect(recipe: Recipe, last: int) -> dict[str, float]:
    """The reference effect measured at a step, on held-out characters."""
    lines = map(json.loads, (recipe.out / "metrics.jsonl").read_text().splitlines())
    at = [line for line in lines if line["step"] == last]
    names = ("reference effect", "loss/right reference", "loss/wrong reference")
    return {name: round(line[name], 5) for line in at for name in names if name in line}


def _spread(name: str, runs: dict, scores: dict) -> dict[str, Any]:
    """Each figure of a stage by seed, with mean and standard deviation."""
    rows = [run[name] | scores[f"{name} seed {seed}"] for seed, run in runs.items() if name in run]
    return {"of seeds": [seed for seed, run in runs.items() if name in run]} | {
        key: {
            "seeds": (values := [row[key] for row in rows]),
            "mean": round(float(np.mean(values)), 4),
            "std": round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None,
        }
        for key in rows[0]
    }


def _conditions() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "ic_jax": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {jax.default_backend()}",
        "held-out share": HELD_OUT,
    }


if __name__ == "__main__":
    main()
