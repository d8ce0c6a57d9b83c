"""python -m convert inspect: what a MODEL folder holds."""

import math
from argparse import Namespace

from ic_jax.weights.loading import COMPONENTS
from ic_jax.weights.model_folder import ModelFolder


def run(args: Namespace) -> None:
    model = ModelFolder.open(args.model)
    if args.verify:
        model.verify()
    print(f"{'component':<12} {'files':>5} {'bytes':>15} {'tensors':>8} {'parameters':>15}  types")
    for kind, files in model.components.items():
        size = sum(entry.size for entry in files.values())
        line = f"{kind:<12} {len(files):>5} {size:>15,}"
        if kind in COMPONENTS:
            tensors = model.tensors(kind).values()
            count = sum(math.prod(t.shape) for t in tensors)
            types = ", ".join(sorted({str(t.dtype) for t in tensors}))
            line += f" {len(tensors):>8} {count:>15,}  {types}"
        print(line)
    if args.verify:
        print("every file has its checksum")
