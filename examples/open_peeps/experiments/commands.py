"""Command line of the experiments; each imports its work when it runs, which needs extras."""

import argparse
from collections.abc import Sequence

from ic_jax import cli

STAGES = """
Train stages 1 and 2 on MODEL, a base model of the small world, once per seed, and measure both.
Stage 1 reconstructs a picture from itself without words, so that everything, the pose included,
comes from the reference; stage 2 pairs two pictures of one character, so that the pose must come
from the prompt. All seeds and both stages generate the same held-out characters in the same new
views from the same noise: with prompts, at the usual subject scale and at a high one, where the
poses that the adapter has learnt contend with the prompt; and with the empty prompt, where the
adapter alone determines the pose. Every answer is the nearest exact render. Writes stages.json and
stages.png.
"""
OPTIMIZERS = """
Train a new adapter for the small model with each optimiser, and once more with AdamW from another
seed, which shows what chance does. All runs see the same pictures in the same order, as far as
their seed is the same: a short first stage of peeps.toml, at the default b2 of 0.999, where
bfloat16 is hardest. The reference effect is measured with the last weights, and with those that
export writes. Each generates the same held-out people from the same noise; every answer is the
nearest exact render. A run that has ended is not repeated. Writes optimizers.json.
"""
LEARNING_RATES = """
Train a new adapter for the small model with each schedule of the learning rate, with Prodigy and
with Schedule-Free, and once more at a constant rate from another seed, which shows what chance
does. Otherwise as `optimizers`. Writes learning_rates.json.
"""
EFFECT_CURVES = """
Train a new adapter for the small model three times, from the same start on the same people, and
measure the reference effect on held-out people at the same noise: with another picture of the
person as reference; with each picture as its own reference; and as the first, at a learning rate
that is ten times too high. All train without words, so that only the reference tells what to draw.
A run goes on where it stopped; more steps by --set are a longer experiment. Writes
effect_curves.json and the figure of docs/training.md.
"""
STAGE_ENDS = """
Measure the adapter at the end of each stage of RUN, which peeps.toml keeps as checkpoints
(saving.keep_every). Each generates held-out people with their prompts, and with the empty prompt,
where the adapter alone determines the body. Every answer is the nearest exact render. Writes
stage_ends.json, and stage_ends.png with the first people.
"""
PROJECTOR_ABLATION = """
Measure how much of the identity each part of a trained projector carries, by blinding it. A blinded
part reads the mean over all references instead of this person's features, which is uninformative
and still what the other parts expect: the cross-layer stack its shallow features, the cross-scale
stack its tiles, an encoder all its features. The resampler without a timestep gets the mean of the
embeddings over the schedule. Writes projector_ablation.json.
"""


def _stages_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=cli.path,
        help="base model of `base_model train --world small`",
    )
    parser.add_argument("work", metavar="WORK", type=cli.path, help="folder for data set and runs")
    parser.add_argument(
        "--seeds", metavar="SEED", type=int, nargs="+", default=[0, 1, 2], help="seeds of training"
    )
    cli.add_set(parser, "stage1.steps=300")
    parser.add_argument(
        "--characters", metavar="N", type=int, default=900, help="characters of the data set"
    )
    parser.add_argument("--views", metavar="M", type=int, default=6, help="views of each character")
    parser.add_argument("--triples", metavar="N", type=int, default=100, help="held-out people")
    cli.add_compile_cache(parser)


def _optimizers_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("work", metavar="WORK", type=cli.path, help="folder for data set and runs")
    parser.add_argument(
        "--triples", metavar="N", type=int, default=300, help="held-out people of each kind, or 0"
    )
    parser.add_argument(
        "--characters", metavar="N", type=int, default=3000, help="characters of the data set"
    )
    cli.add_set(parser, "stage1.steps=300")
    cli.add_compile_cache(parser)


def _effect_curves_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("work", metavar="WORK", type=cli.path, help="folder for data set and runs")
    parser.add_argument(
        "--characters", metavar="N", type=int, default=600, help="characters of the data set"
    )
    cli.add_set(parser, "stage1.steps=2000")
    cli.add_compile_cache(parser)


def _stage_ends_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=cli.path, help="RUN folder of `python -m train`")
    parser.add_argument(
        "work", metavar="WORK", type=cli.path, help="folder for a MODEL of each stage"
    )
    parser.add_argument(
        "--triples", metavar="N", type=int, default=100, help="held-out people of each kind"
    )
    cli.add_compile_cache(parser)


def _projector_ablation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=cli.path, help="MODEL folder")
    parser.add_argument(
        "--triples", metavar="N", type=int, default=100, help="held-out people of each kind"
    )
    cli.add_compile_cache(parser)


def _run_stages(args: argparse.Namespace) -> None:
    from examples.open_peeps.experiments import stages

    stages.run(args)


def _run_optimizers(args: argparse.Namespace) -> None:
    from examples.open_peeps.experiments import optimizers

    optimizers.run(args)


def _run_learning_rates(args: argparse.Namespace) -> None:
    from examples.open_peeps.experiments import learning_rates

    learning_rates.run(args)


def _run_effect_curves(args: argparse.Namespace) -> None:
    from examples.open_peeps.experiments import effect_curves

    effect_curves.run(args)


def _run_stage_ends(args: argparse.Namespace) -> None:
    from examples.open_peeps.experiments import stage_ends

    stage_ends.run(args)


def _run_projector_ablation(args: argparse.Namespace) -> None:
    from examples.open_peeps.experiments import projector_ablation

    projector_ablation.run(args)


COMMANDS = (
    cli.Command(
        "stages",
        "Measure what stages 1 and 2 teach the adapter of the small world, over several seeds.",
        _stages_arguments,
        _run_stages,
        STAGES,
    ),
    cli.Command(
        "optimizers",
        "Measure what each optimiser has taught a new adapter after the same steps.",
        _optimizers_arguments,
        _run_optimizers,
        OPTIMIZERS,
    ),
    cli.Command(
        "learning-rates",
        "Measure what each schedule of the learning rate has taught a new adapter.",
        _optimizers_arguments,
        _run_learning_rates,
        LEARNING_RATES,
    ),
    cli.Command(
        "effect-curves",
        "Measure the reference effect of runs that use, ignore and copy the reference.",
        _effect_curves_arguments,
        _run_effect_curves,
        EFFECT_CURVES,
    ),
    cli.Command(
        "stage-ends",
        "Measure the adapter at the end of each stage of one run of peeps.toml.",
        _stage_ends_arguments,
        _run_stage_ends,
        STAGE_ENDS,
    ),
    cli.Command(
        "projector-ablation",
        "Measure how much of the identity each part of a trained projector carries.",
        _projector_ablation_arguments,
        _run_projector_ablation,
        PROJECTOR_ABLATION,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `ic_jax.cli.run`)."""
    return cli.main(
        "python -m examples.open_peeps.experiments",
        "Measure adapters of Open Peeps models; each command writes JSON beside its source file.",
        COMMANDS,
        arguments,
    )
