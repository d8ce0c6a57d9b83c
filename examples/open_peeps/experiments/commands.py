"""Command line of the experiments."""

from collections.abc import Sequence

from examples.open_peeps.experiments import (
    learning_rates,
    optimizers,
    projector_ablation,
    stage_ends,
    stages,
)
from ic_jax import cli

COMMANDS = (
    cli.Command(
        "stages",
        "Measure what stages 1 and 2 teach the adapter of the small world, over several seeds.",
        stages.add_arguments,
        stages.run,
        stages.DESCRIPTION,
    ),
    cli.Command(
        "optimizers",
        "Measure what each optimiser has taught a new adapter after the same steps.",
        optimizers.add_arguments,
        optimizers.run,
        optimizers.DESCRIPTION,
    ),
    cli.Command(
        "learning-rates",
        "Measure what each schedule of the learning rate has taught a new adapter.",
        learning_rates.add_arguments,
        learning_rates.run,
        learning_rates.DESCRIPTION,
    ),
    cli.Command(
        "stage-ends",
        "Measure the adapter at the end of each stage of one run of peeps.toml.",
        stage_ends.add_arguments,
        stage_ends.run,
        stage_ends.DESCRIPTION,
    ),
    cli.Command(
        "projector-ablation",
        "Measure how much of the identity each part of a trained projector carries.",
        projector_ablation.add_arguments,
        projector_ablation.run,
        projector_ablation.DESCRIPTION,
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
