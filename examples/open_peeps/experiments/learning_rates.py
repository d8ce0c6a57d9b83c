"""Comparison of learning rates that fall or are found, after the same steps."""

import argparse
from pathlib import Path

from examples.open_peeps.experiments import optimizers

RESULTS = Path(__file__).with_suffix(".json")
STAGES = ("stage1", "stage2", "stage3")  # of the recipe, whose checks see all of them
RUNS = {
    "constant": (),
    "cosine": ("stage1.schedule=cosine",),
    "schedule-free": ("optimizer=schedule-free", *(f"{stage}.ema=0" for stage in STAGES)),
    "wsd": ("stage1.schedule=wsd",),
    "constant, another seed": ("seed=1",),
    "prodigy": ("optimizer=prodigy", *(f"{stage}.learning_rate=1.0" for stage in STAGES)),
}


def run(args: argparse.Namespace) -> None:
    """Train and score every run; write the results after each."""
    optimizers.compare(args, RUNS, RESULTS)
