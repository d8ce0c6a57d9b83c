"""`python -m convert inspect`: the components of a MODEL folder."""

import math
from argparse import ArgumentParser, Namespace

from ic_jax.weights.loading import COMPONENTS
from ic_jax.weights.model_folder import ModelFolder


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `inspect`."""
    parser.add_argument("model", metavar="MODEL", help="folder to inspect")
    parser.add_argument("--verify", action="store_true", help="compare the checksum of every file")


def run(args: Namespace) -> None:
    """Print a line per component."""
    model = ModelFolder.open(args.model)
    if args.verify:
        model.verify()
    print(f"{'component':<12} {'files':>5} {'bytes':>15} {'tensors':>8} {'parameters':>15}  types")
    for component, files in model.components.items():
        size = sum(entry.size for entry in files.values())
        line = f"{component:<12} {len(files):>5} {size:>15,}"
        if component in COMPONENTS:
            tensors = model.tensors(component).values()
            count = sum(math.prod(t.shape) for t in tensors)
            types = ", ".join(sorted({str(t.dtype) for t in tensors}))
            line += f" {len(tensors):>8} {count:>15,}  {types}"
        print(line)
    if args.verify:
        print("every file matches its checksum")
