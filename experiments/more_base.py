"""FLUX and its text encoders trained further, with words that read their neighbours.

    python -m experiments.more_base MODEL MORE
    python -m train foundations MORE --world peeps

How the model that ships got its FLUX: MODEL's had been trained for 14 000 steps from text encoders
whose words did not (`train.foundations.text_encoders.read_neighbours`, which new ones start with).
Everything else is taken from MODEL as it is.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

from ic_jax import checkpoint, model_folder
from train.foundations import words
from train.foundations.base import Base, train_base
from train.foundations.fit import Fit
from train.foundations.pictures import draw
from train.foundations.settings import PEEPS
from train.foundations.text_encoders import read_neighbours
from train.foundations.worlds import WORLDS

SEED = 1  # of captions, batches and noise; the pictures are those of the first time
KINDS = ("transformer", "t5", "clip")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.more_base", description=__doc__)
    parser.add_argument("model", type=Path, help="MODEL folder of `train foundations`")
    parser.add_argument("more", type=Path, help="MODEL folder to be")
    parser.add_argument("--steps", type=int, default=5000)
    given = parser.parse_args()
    parts, more = (path.with_name(path.name + ".parts") for path in (given.model, given.more))

    vae = checkpoint.load_component(parts / "vae", "vae")
    start = Base(*(checkpoint.load_component(parts / kind, kind) for kind in KINDS))
    read_neighbours(start.t5)
    shutil.copytree(parts, more, ignore=shutil.ignore_patterns(*KINDS))
    drawn = draw(PEEPS.world, PEEPS.pictures, PEEPS.side, PEEPS.seed)
    fit = Fit(given.steps, PEEPS.base_batch, PEEPS.base_rate, SEED, more / "base.npz")
    settings = dataclasses.replace(PEEPS, seed=SEED)
    tokenizers, *_ = words.tokenizers(WORLDS[PEEPS.world].words())
    base, facts = train_base(settings, drawn, vae, start, tokenizers, fit)
    for kind, module in zip(KINDS, base, strict=True):
        with model_folder.create(more / kind) as writer:
            checkpoint.write_component(writer, kind, module)
    (more / "base.npz").unlink()
    print(f"loss {facts['loss']}")


if __name__ == "__main__":
    main()
