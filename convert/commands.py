"""Commands of `python -m convert`."""

from collections.abc import Sequence

from convert import from_torch, inspect_model, to_torch
from ic_jax import cli
from ic_jax.cli import Command

COMMANDS = (
    Command(
        "from-torch",
        "Convert published PyTorch weights to a MODEL folder.",
        from_torch.add_arguments,
        from_torch.run,
        description="Convert published PyTorch weights to a MODEL folder. Every source is a folder "
        "or a Hub id (org/name); give one for each component that the model should have.",
    ),
    Command(
        "to-torch",
        "Convert a MODEL folder back to the layouts that diffusers and transformers load.",
        to_torch.add_arguments,
        to_torch.run,
    ),
    Command(
        "inspect",
        "List the components of a MODEL folder, or of any file of weights.",
        inspect_model.add_arguments,
        inspect_model.run,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, see `ic_jax.cli.run`."""
    description = "Convert weights between the published PyTorch layouts and MODEL folders."
    return cli.main("python -m convert", description, COMMANDS, arguments)
