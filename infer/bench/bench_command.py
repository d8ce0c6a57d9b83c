"""Arguments and work of `python -m infer bench`."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path

import jax

from ic_jax import cli
from ic_jax.devices import platform
from ic_jax.measuring.origin import origin
from ic_jax.measuring.parts import Budget, Results, measure
from ic_jax.measuring.sizes import NAMES, size_of
from infer.bench import every_part
from infer.bench.drawing import DrawingSettings
from infer.bench.parts import AGAINST_TORCH, EVERY, TORCH, TRAINING, USUAL, parts
from infer.loading_options import DTYPES

PACKAGES = ("jax", "jaxlib", "flax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "bench.json"  # of --all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench`."""
    add = parser.add_argument
    add("--size", choices=NAMES, default="flux-dev", help="size of the model")
    by_size = "(default: set by the size)"
    add("--height", type=cli.count, metavar="PIXELS", help=f"height of a picture {by_size}")
    add("--width", type=cli.count, metavar="PIXELS", help=f"width of a picture {by_size}")
    add("--steps", type=cli.count, metavar="N", help=f"number of denoising steps {by_size}")
    add(
        "--text-length",
        type=cli.count,
        metavar="N",
        help=f"length of prompts in T5 tokens {by_size}",
    )
    add("--batch", type=cli.count, metavar="N", default=1, help="pictures that are drawn together")
    dtype = "dtype of weights and computation (default: bfloat16; float32 on a CPU)"
    add("--dtype", choices=DTYPES, help=dtype)
    add("--no-adapter", action="store_true", help="draw with FLUX alone, without a subject")
    add("--samples", type=cli.count, metavar="N", default=7, help="samples of every time")
    group = parser.add_argument_group("what to measure")
    every = "measure all that the device can tell, training included where there is memory for it"
    group.add_argument("--all", action="store_true", help=every)
    versus = "compare one step with diffusers' transformer, eager and compiled, in alternation"
    group.add_argument("--vs", choices=(TORCH,), help=versus)
    only = f"measure these parts alone: {', '.join(EVERY)}"
    group.add_argument("--only", nargs="+", choices=EVERY, metavar="PART", help=only)
    budget = "skip what the time that is left is too short for"
    group.add_argument("--budget", type=cli.positive, metavar="SECONDS", help=budget)
    file = (
        "write the results to a file after every part (default with --all: benchmarks/bench.json)"
    )
    group.add_argument("--json", type=cli.path, metavar="FILE", help=file)


def run(args: argparse.Namespace) -> None:
    """Measure the parts that the options name."""
    for option, value in {"--all": args.all, "--only": args.only}.items():
        if args.vs and value:
            raise ValueError(f"{option} does nothing beside --vs; leave one of them out")
    budget, file = Budget(args.budget), args.json
    names = AGAINST_TORCH if args.vs else args.only or (EVERY if args.all else USUAL)
    facts = {**origin(*PACKAGES), "budget s": args.budget}
    numbers = numbers_of(args)
    if args.all or TRAINING in names:
        every_part.measure_all(args, names, Results(facts, file or RESULTS), budget)
        return
    # Of a GPU's memory; read when JAX starts. PyTorch needs the same again.
    share = "0.45" if args.vs else "0.93"
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", share)
    usual = "float32" if platform(jax.devices()[0]) == "cpu" else "bfloat16"
    adapter = not (args.no_adapter or args.vs)  # diffusers has none
    settings = DrawingSettings(args.size, args.dtype or usual, adapter, **numbers)
    results = Results({**facts, "settings": asdict(settings)}, file)
    available = parts(settings, budget)
    measure([available[name] for name in names], results, budget)


def numbers_of(args: argparse.Namespace) -> dict[str, int]:
    """Return the numbers that the options name; the size sets the others.

    Raises:
        ValueError: a side is no multiple of a token's, or a number is not positive.
    """
    size = size_of(args.size)
    defaults = {"height": size.side, "width": size.side, "steps": size.steps}
    defaults |= {"text_length": size.text_length}
    numbers = {k: v if getattr(args, k) is None else getattr(args, k) for k, v in defaults.items()}
    numbers |= {"batch": args.batch, "samples": args.samples}
    for name, value in numbers.items():
        unit = size.pixels_per_token if name in ("height", "width") else 1
        if value < 1 or value % unit:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} {value} is not a positive multiple of {unit}")
    return numbers
