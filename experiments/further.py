"""Parts of the foundations trained further, as those of the model that ships were.

    python -m experiments.further base MODEL MORE --steps 5000
    python -m experiments.further siglip MORE LAST --steps 2800
    python -m train foundations LAST --world peeps

Each takes one part of MODEL for a start, and the others as they are. The base is FLUX with its text
encoders: MODEL's had been trained for 14 000 steps with words that did not read their neighbours
(`train.foundations.text_encoders.read_neighbours`, which new ones start with: do not give them a
second time). Stopped on its way, the same command goes on.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ic_jax import checkpoint, model_folder
from train.foundations import words
from train.foundations.base import Base, train_base
from train.foundations.command import FACTS
from train.foundations.fit import Fit
from train.foundations.pictures import draw, draw_subjects
from train.foundations.settings import PEEPS
from train.foundations.text_encoders import read_neighbours
from train.foundations.vision import train_siglip
from train.foundations.worlds import WORLDS
from train.run_folder import write_json

WORLD = WORLDS[PEEPS.world]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.further", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("model", type=Path, help="MODEL folder of `train foundations`")
    parser.add_argument("more", type=Path, help="MODEL folder to be")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn by chance")
    given = parser.parse_args()
    kinds, trained = PARTS[given.part]
    parts, more = (path.with_name(path.name + ".parts") for path in (given.model, given.more))
    start = {kind: checkpoint.load_component(parts / kind, kind) for kind in (*kinds, "vae")}
    shutil.copytree(parts, more, ignore=shutil.ignore_patterns(*kinds), dirs_exist_ok=True)
    kept = more / f"{given.part}.npz"
    modules, facts = trained(start, given.seed, given.steps, kept)
    for kind, module in zip(kinds, modules, strict=True):
        with model_folder.create(more / kind, overwrite=True) as writer:
            checkpoint.write_component(writer, kind, module)
    kept.unlink()
    known = json.loads((more / FACTS).read_text())
    # Else `train foundations` would refuse what was made with other settings than today's.
    known |= {"settings": dataclasses.asdict(PEEPS), f"{given.part}, further": facts}
    write_json(more / FACTS, known)


def base(start: dict[str, Any], seed: int, steps: int, kept: Path) -> tuple[tuple, dict[str, Any]]:
    """The pictures are those of the first time, captions and noise are not."""
    read_neighbours(start["t5"])
    begun = Base(*(start[kind] for kind in PARTS["base"][0]))
    drawn = draw(PEEPS.world, PEEPS.pictures, PEEPS.side, PEEPS.seed)
    settings = dataclasses.replace(PEEPS, seed=seed)
    tokenizers, *_ = words.tokenizers(WORLD.words())
    fit = Fit(steps, PEEPS.base_batch, PEEPS.base_rate, seed, kept)
    return train_base(settings, drawn, start["vae"], begun, tokenizers, fit)


def siglip(
    start: dict[str, Any], seed: int, steps: int, kept: Path
) -> tuple[tuple, dict[str, Any]]:
    """Its text tower starts anew, and the people are others."""
    settings = dataclasses.replace(PEEPS, seed=seed)
    drawn = draw_subjects(PEEPS.world, PEEPS.subjects, PEEPS.side, seed)
    tokenizers, _, clip_words = words.tokenizers(WORLD.words())
    fit = Fit(steps, PEEPS.encoder_batch, PEEPS.encoder_rate, seed, kept)
    clip = PEEPS.clip(clip_words)
    tower, facts = train_siglip(settings, drawn, clip, tokenizers, fit, start["siglip"])
    return (tower,), facts


PARTS: dict[str, tuple[tuple[str, ...], Callable]] = {
    "base": (("transformer", "t5", "clip"), base),
    "siglip": (("siglip",), siglip),
}


if __name__ == "__main__":
    main()
