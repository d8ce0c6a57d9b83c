"""The data set of the experiment, and what is asked of the trained model."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ic_jax.folders import written_whole
from train.data.prepare import Options, prepare
from train.foundations.world import (
    EVERYONE,
    HELD,
    caption,
    random_bodies,
    random_view,
)
from train.peeps.palette import GROUND
from train.peeps.render import Identity, View, over, render

SIZE = 128  # pixels: twice the target's, because a reference is also seen in four tiles


class Triple(NamedTuple):
    """A held-out person, a picture of them, and another view to draw them in."""

    identity: Identity
    seen: View  # in the reference
    view: View  # asked for
    reference: np.ndarray  # uint8 [h, w, 3]: cut out onto white, as in training


def prepared(work: Path, characters: int, views: int) -> Path:
    """The data set of random people, held-out ones among them, in views whose bodies differ."""
    data = work / "data"
    if not data.exists():
        with written_whole(work / "source", overwrite=True, owns=lambda _: True) as folder:
            _write(folder, characters, views)
        prepare(work / "source", data, Options(resolutions=(SIZE,)), workers=1)
    return data


def triples(count: int) -> list[Triple]:
    """The same for every run; no body is both seen and asked for."""
    rng = np.random.default_rng(12)
    found = []
    for n in rng.permutation(len(HELD))[:count]:
        seen, asked = (random_view(rng, body) for body in random_bodies(rng, 2))
        reference = _cropped(render(HELD[n], seen, SIZE))
        found.append(Triple(HELD[n], seen, asked, reference))
    return found


def _write(folder: Path, characters: int, views: int) -> None:
    rng = np.random.default_rng(11)
    with (folder / "metadata.jsonl").open("w") as lines:
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
                lines.write(json.dumps(line) + "\n")


def _cropped(pixels: np.ndarray) -> np.ndarray:
    """The figure on white, as `train.data.pictures.prepare_reference` cuts it out."""
    figure = pixels[..., 3] >= 128
    rows, columns = np.flatnonzero(figure.any(1)), np.flatnonzero(figure.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return over(pixels[box], "#ffffff")
