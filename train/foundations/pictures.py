"""Pictures of the small world, drawn once into memory."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from train.foundations.world import TRAINED, random_view
from train.peeps.render import Identity, View, picture
from train.workers import follow_parent


class Drawn(NamedTuple):
    """Pictures and what they show; nobody in them is held out."""

    pixels: UInt8[np.ndarray, "n h h 3"]
    identities: list[Identity]
    views: list[View]


def draw(count: int, side: int, seed: int, workers: int | None = None) -> Drawn:
    """`count` random views of random people; the same for the same seed."""
    rng = np.random.default_rng((seed, 1))
    identities = [TRAINED[n] for n in rng.integers(len(TRAINED), size=count)]
    views = [random_view(rng) for _ in range(count)]
    sides = [side] * count
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        pixels = list(map(picture, identities, views, sides))
    else:
        # Spawned, because a fork of a process that holds JAX's threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, follow_parent) as pool:
            pixels = list(pool.map(picture, identities, views, sides, chunksize=64))
    return Drawn(np.stack(pixels), identities, views)
