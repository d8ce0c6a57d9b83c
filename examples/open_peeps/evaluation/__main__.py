"""`python -m infer evaluate`: a model's figures on held-out people of a drawn world."""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax

from examples.open_peeps.evaluation import drawing, scores
from examples.open_peeps.evaluation.sheet import sheet
from examples.open_peeps.evaluation.triples import triples
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline, cli
from ic_jax.cli import say
from ic_jax.files import atomic_folder
from ic_jax.version import __version__
from ic_jax.weights import loading
from ic_jax.weights.model_folder import SMALL_MODEL

RESULTS, SHOWN = "evaluation.json", 10  # file; triples on a contact sheet


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code, see `ic_jax.cli.run`."""
    parser = argparse.ArgumentParser(prog="python -m infer evaluate", description=__doc__)
    parser.add_argument("--set", choices=WORLDS, required=True, help="the world that is asked for")
    parser.add_argument(
        "--model", type=Path, default=SMALL_MODEL, help="(default: the small one of ic_jax)"
    )
    parser.add_argument("--triples", type=int, default=300, help="person, picture, prompt (300)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    given = parser.parse_args(arguments)
    return cli.run(lambda: evaluate(given), debug=given.debug)


def evaluate(given: argparse.Namespace) -> None:
    """Draw, read, and write OUT/evaluation.json and a contact sheet for each kind of people."""
    if given.triples < 2 or len(set(given.seeds)) < len(given.seeds):
        raise ValueError(
            f"--triples {given.triples} --seeds {given.seeds}: give 2 triples or more, and every "
            "seed once"
        )
    start = time.perf_counter()
    with atomic_folder(given.out, overwrite=given.overwrite, owns=_ours) as folder:
        model = loading.load(given.model, "float32")
        results = {
            people: _measured(model, given, people, folder) for people in WORLDS[given.set].held_out
        }
        seconds = round(time.perf_counter() - start)
        conditions = {
            **{name: getattr(given, name) for name in ("model", "set", "triples", "seeds")},
            "ic_jax": __version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
            "seconds": seconds,
        }
        text = json.dumps(results | {"conditions": conditions}, indent=1, default=str)
        (folder / RESULTS).write_text(text + "\n")
    say(f"\nwrote {given.out}: {seconds} s")


def _measured(
    model: loading.Model, given: argparse.Namespace, people: str, folder: Path
) -> dict[str, Any]:
    """Every row's figures, said as a table; the contact sheet is written."""
    pipe = InstantCharacterPipeline(model)
    assert model.vae is not None  # or there would be no pipeline
    asked = triples(given.set, people, given.triples)
    drawn = {f"seed {seed}": drawing.draw(pipe, asked, seed, name="model") for seed in given.seeds}
    # Of one seed: they are near chance, or near what is certain, and take as long as the model.
    fixed = drawing.controls(pipe, asked, given.seeds[0])
    fixed |= drawing.exact(model.vae, asked, pipe.sampling.height)
    found = scores.scored(drawn | fixed, asked)
    figures = {"model": scores.spread([found[name] for name in drawn])}
    figures |= {name: scores.spread([found[name]]) for name in fixed}
    say(f"\n{people}, {len(asked)} triples, percent\n{scores.table(figures)}")
    columns = drawn | {name: fixed[name] for name in ("no subject", "another's reference")}
    sheet(asked[:SHOWN], columns).save(folder / f"{people.replace(' ', '-')}.png")
    return figures


def _ours(name: str) -> bool:
    return name == RESULTS or name.endswith(".png")
