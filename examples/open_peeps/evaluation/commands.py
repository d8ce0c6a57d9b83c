"""Command line of the evaluation: scores on held-out people, and the picture of the README."""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from examples.open_peeps.evaluation import generation, groups, pairs, scores
from examples.open_peeps.evaluation.origin import origin
from examples.open_peeps.evaluation.sheet import contact_sheet
from examples.open_peeps.evaluation.triples import held_out_triples
from examples.open_peeps.world.render import body_kind
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline, cli
from ic_jax.files import atomic_file, atomic_folder
from ic_jax.weights import loading
from ic_jax.weights.model_folder import SMALL_MODEL

MODEL_HELP = "MODEL folder (default: the small model that comes with ic_jax)"
RESULTS, SHOWN = "evaluation.json", 10  # file; triples on a contact sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `ic_jax.cli.run`)."""
    return cli.main(
        "python -m examples.open_peeps.evaluation",
        "Evaluate a model on people of Open Peeps that no training has shown.",
        COMMANDS,
        arguments,
        default="evaluate",
    )


def _add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=cli.path, default=SMALL_MODEL, help=MODEL_HELP)
    parser.add_argument("--world", choices=WORLDS, default="peeps", help="people and prompts")
    parser.add_argument(
        "--triples",
        metavar="N",
        type=int,
        default=300,
        help="number of people of each kind, each with a reference picture and a prompt",
    )
    parser.add_argument(
        "--seeds",
        metavar="SEED",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="seeds of the noise (default: 0 1 2)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=cli.path, default=Path("evaluation"), help="folder to write"
    )
    cli.add_overwrite(parser, "an existing FOLDER that this command wrote")
    cli.add_compile_cache(parser)


def _add_front_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="FILE.webp", type=cli.path, required=True, help="picture to write"
    )
    cli.add_compile_cache(parser)


def evaluate(args: argparse.Namespace) -> None:
    """Generate and score; write evaluation.json and a contact sheet of each kind of people."""
    if args.triples < 2 or len(set(args.seeds)) < len(args.seeds):
        raise ValueError(
            f"--triples {args.triples} --seeds {args.seeds}: give 2 triples or more, and every "
            "seed once"
        )
    start = time.perf_counter()
    with atomic_folder(args.out, overwrite=args.overwrite, owns=_is_written_here) as folder:
        model = loading.load_model(args.model, "float32")
        results: dict[str, Any] = {
            people: _evaluate_people(model, args, people, folder)
            for people in WORLDS[args.world].held_out
        }
        if args.world == "peeps":
            pipe = InstantCharacterPipeline(model)
            results["two people"] = pairs.evaluate(pipe, args.triples, args.seeds)
        seconds = round(time.perf_counter() - start)
        settings = {name: getattr(args, name) for name in ("model", "world", "triples", "seeds")}
        results["conditions"] = settings | {"seconds": seconds} | origin()
        (folder / RESULTS).write_text(json.dumps(results, indent=1, default=str) + "\n")
    cli.say(f"\nwrote {args.out}: {seconds} s")


def _evaluate_people(
    model: loading.Model, args: argparse.Namespace, people: str, folder: Path
) -> dict[str, Any]:
    """Return every row's figures, print them as a table, and write the contact sheet."""
    pipe = InstantCharacterPipeline(model)
    assert model.vae is not None  # the pipeline has checked it
    triples = held_out_triples(args.world, people, args.triples)
    generated = {
        f"seed {seed}": generation.generate(pipe, triples, seed, name="model")
        for seed in args.seeds
    }
    # One seed is enough for controls: they are near chance or near certainty.
    fixed = generation.controls(pipe, triples, args.seeds[0])
    fixed |= generation.exact(model.vae, triples, pipe.sampling.height)
    rates = scores.score_all(generated | fixed, triples)
    figures = {"model": scores.spread([rates[name] for name in generated])}
    figures |= {name: scores.spread([rates[name]]) for name in fixed}
    cli.say(f"\n{people}, {len(triples)} triples, percent\n{scores.table(figures)}")
    columns = generated | {name: fixed[name] for name in ("no subject", "another's reference")}
    contact_sheet(triples[:SHOWN], columns).save(folder / f"{people.replace(' ', '-')}.png")
    return figures


def _is_written_here(name: str) -> bool:
    return name == RESULTS or name.endswith((".png", ".webp"))


def _add_groups_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=cli.path, default=SMALL_MODEL, help=MODEL_HELP)
    count = "number of pictures of each kind"
    parser.add_argument("--pictures", metavar="N", type=cli.count, default=100, help=count)
    parser.add_argument(
        "--people",
        type=int,
        choices=range(1, groups.LARGEST + 1),
        default=groups.LARGEST,
        help=f"people in the largest groups (default: {groups.LARGEST})",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=cli.path, default=Path("groups"), help="folder to write"
    )
    cli.add_overwrite(parser, "an existing FOLDER that this command wrote")
    cli.add_compile_cache(parser)


def evaluate_groups(args: argparse.Namespace) -> None:
    """Draw groups of held-out people by regions; write the figures and the sheets."""
    start = time.perf_counter()
    with atomic_folder(args.out, overwrite=args.overwrite, owns=_is_written_here) as folder:
        pipe = InstantCharacterPipeline(loading.load_model(args.model, "float32"))
        results: dict[str, Any] = groups.evaluate(pipe, args.pictures, folder, args.people)
        seconds = round(time.perf_counter() - start)
        results["conditions"] = {"model": str(args.model), "seconds": seconds} | origin()
        (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    cli.say(f"wrote {args.out}: {seconds} s")


def front(args: argparse.Namespace) -> None:
    """Draw the first three held-out people whose prompt asks for a half-length view.

    Half-length views are what is legible at 128 pixels. Pictures are drawn at the model's own size,
    with the seeds that `python -m infer --seed 0 1 2` takes, and enlarged.
    """
    triples = held_out_triples("peeps", "known parts", 30)
    busts = list(islice((t for t in triples if body_kind(t.view.body) == "bust"), 3))
    pipe = InstantCharacterPipeline.from_pretrained(dtype="float32")
    prompts, references = [t.prompt for t in busts], [t.reference for t in busts]
    columns = {
        f"seed {seed}": np.asarray(
            pipe(
                prompts, subject_image=references, seed=[seed] * len(busts), output_type="np"
            ).images
        )
        for seed in (0, 1, 2)
    }
    sheet = contact_sheet(busts, columns, cell=240)
    with atomic_file(args.out) as part:
        sheet.save(part, format="WEBP", quality=90)


COMMANDS = (
    cli.Command(
        "groups",
        "Draw up to three held-out people in one picture, each in a region, and score identity.",
        _add_groups_arguments,
        evaluate_groups,
    ),
    cli.Command(
        "evaluate",
        "Generate pictures of held-out people and score identity, pose, face and colours.",
        _add_evaluate_arguments,
        evaluate,
    ),
    cli.Command(
        "front",
        "Draw the picture of the README: three held-out people by the small model.",
        _add_front_arguments,
        front,
    ),
)
