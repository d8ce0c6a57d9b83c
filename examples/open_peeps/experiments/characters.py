"""Data set of the stages experiment: people of the small world, held-out ones included."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from examples.open_peeps.world.palette import GROUND
from examples.open_peeps.world.render import over, render
from examples.open_peeps.world.small_world import (
    EVERYONE,
    caption,
    random_bodies,
    random_view,
)
from ic_jax.files import atomic_folder
from train.data.prepare import PrepareOptions, prepare

SIZE = 128  # pixels: twice the target's, because a reference is also seen in four tiles


def prepare_characters(work: Path, characters: int, views: int) -> Path:
    """Prepare the data set of random people, in views whose bodies differ, unless it exists."""
    data = work / "data"
    if not data.exists():
        with atomic_folder(work / "source", overwrite=True, owns=lambda _: True) as folder:
            _write(folder, characters, views)
        prepare(work / "source", data, PrepareOptions(resolutions=(SIZE,)), workers=1)
    return data


def _write(folder: Path, characters: int, views: int) -> None:
    rng = np.random.default_rng(11)
    with (folder / "metadata.jsonl").open("w") as file:
        for n in rng.permutation(len(EVERYONE))[:characters]:
            for number, body in enumerate(random_bodies(rng, views)):
                view = random_view(rng, body)
                pixels = render(EVERYONE[n], view, SIZE)
                stem = f"{EVERYONE[n]}-{number}"
                Image.fromarray(over(pixels, GROUND[view.ground])).save(folder / f"{stem}.png")
                Image.fromarray(pixels[..., 3]).save(folder / f"{stem}.mask.png")
                line = {
                    "file": f"{stem}.png",
                    "mask": f"{stem}.mask.png",
                    "caption": caption(view),
                    "character": str(EVERYONE[n]),
                    "view": body,
                }
                file.write(json.dumps(line) + "\n")
