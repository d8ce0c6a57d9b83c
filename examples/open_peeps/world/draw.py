"""Training data of the small model in chunks, drawn by worker processes while others train.

A chunk holds some people: for each a reference in five crops, and scenes that they are in. Scene 0
shows the reference's own view, alone: the picture is its own reference. A chunk's number decides
every byte of it, on any machine.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from examples.open_peeps.world import captions, scene_captions
from examples.open_peeps.world.people import reference_view, train_identities, views
from examples.open_peeps.world.render import Identity, View, over, render
from examples.open_peeps.world.scenes import Scene, alone, focus_boxes, pair, picture, region
from ic_jax.files import atomic_file
from ic_jax.preprocessing.regions import box_weights
from train.data.focus import density

PEOPLE = 16  # of a chunk
SCENES = 5  # of each person
PAIRS = 0.35  # share of scenes with two people
NEUTRAL = 0.75  # share of references in a neutral view; the others are in any
VERSION = 2  # of the arrays in a file
TEXTS = ("full", "scene", "untold", "person")


class DrawJob(NamedTuple):
    """Chunk to draw."""

    folder: Path
    number: int
    people: tuple[Identity, ...]
    seed: int
    side: int  # pixels of a scene
    reference_side: int  # pixels of each crop of a reference
    cell: int  # pixels of a latent, for the focus; a token is twice as wide


class Chunk(NamedTuple):
    """Drawn people: `p` of them, with `v` scenes each."""

    pixels: UInt8[np.ndarray, "p v h h 3"]
    references: UInt8[np.ndarray, "p 5 s s 3"]
    focus: Float[np.ndarray, "p v y x"]  # density of heads and faces, mean 1, float16
    regions: Float[np.ndarray, "p v 2 n"]  # weight of person and other at image tokens, float16
    beside: Int[np.ndarray, "p v"]  # number of the other minus the person's; 0 where there is none
    texts: dict[str, list[list[str]]]  # by kind: a list for each person


ARRAYS = tuple(name for name in Chunk._fields if name != "texts")


def jobs(
    folder: Path, count: int, seed: int, side: int, reference_side: int, cell: int
) -> list[DrawJob]:
    """Return `count` chunks of different people whom training may show."""
    people = list(islice(train_identities(seed), count * PEOPLE))
    return [
        DrawJob(
            folder,
            n,
            tuple(people[n * PEOPLE : (n + 1) * PEOPLE]),
            seed,
            side,
            reference_side,
            cell,
        )
        for n in range(count)
    ]


def draw_chunk(job: DrawJob) -> int:
    """Draw a chunk into its file, unless it is there, and return its number."""
    file = chunk_file(job.folder, job.number)
    if not file.exists():
        rng = np.random.default_rng((job.seed, job.number))
        drawn = [_person(job, n, rng) for n in range(len(job.people))]
        texts = {kind: [person[kind] for person in drawn] for kind in TEXTS}
        arrays: Any = {name: np.stack([person[name] for person in drawn]) for name in ARRAYS}
        encoded = np.frombuffer(json.dumps(texts).encode(), np.uint8)
        with atomic_file(file) as part, part.open("wb") as out:
            np.savez(out, **arrays, texts=encoded)
    return job.number


def chunk_file(folder: Path, number: int) -> Path:
    """Return the file of a chunk."""
    return folder / f"chunk-{VERSION}-{number:05d}.npz"


def read_chunk(folder: Path, number: int) -> Chunk:
    """Read a chunk that was drawn."""
    with np.load(chunk_file(folder, number)) as arrays:
        texts = json.loads(arrays["texts"].tobytes())
        return Chunk(**{name: arrays[name] for name in ARRAYS}, texts=texts)


def _person(job: DrawJob, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Draw one person's reference and scenes."""
    person = job.people[n]
    neutral = rng.random() < NEUTRAL
    view = reference_view(rng) if neutral else views(rng, 1)[0]
    scenes, beside = [alone(person, view)], [0]
    while len(scenes) < SCENES:
        other = (n + len(scenes)) % len(job.people)
        if rng.random() < PAIRS:
            scenes.append(pair((person, job.people[other]), rng))
            beside.append(other - n)
        else:
            beside.append(0)
            scenes.append(alone(person, views(rng, 1, apart_from=view.body)[0]))
    others = [_without(scene, person) for scene in scenes]
    grid = (job.side // (2 * job.cell),) * 2
    return {
        "regions": np.stack([_regions(scene, person, grid) for scene in scenes]),
        "beside": np.array(beside, np.int16),
        "pixels": np.stack([picture(scene, job.side) for scene in scenes]),
        "references": reference_crops(person, view, job.reference_side, rng),
        "focus": np.stack(
            [density(focus_boxes(s, job.side), job.side, job.side, job.cell) for s in scenes]
        ).astype(np.float16),
        "full": [scene_captions.caption(s, range(len(s.figures)), rng) for s in scenes],
        "scene": [
            scene_captions.caption(s, told, rng) for s, told in zip(scenes, others, strict=True)
        ],
        "untold": [scene_captions.caption(s, (), rng) for s in scenes],
        "person": [captions.of_person(person, rng)],
    }


def _regions(scene: Scene, person: Identity, grid: tuple[int, int]) -> Float[np.ndarray, "2 n"]:
    """Return the weight of a person and of the other one at each image token; 0 of nobody."""
    weights = np.zeros((2, grid[0] * grid[1]), np.float16)
    for n, f in enumerate(scene.figures):
        weights[int(f.identity != person)] = box_weights(region(scene, n), grid)
    return weights


def _without(scene: Scene, person: Identity) -> list[int]:
    """Return the indices of the figures other than a person."""
    return [n for n, f in enumerate(scene.figures) if f.identity != person]


def reference_crops(
    identity: Identity, view: View, side: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "5 s s 3"]:
    """Render a reference, whole and in four tiles, as an adapter's image encoders see it."""
    from train.data.pictures import Augment, MaskedPicture, prepare_reference  # needs an extra

    pixels = render(identity, view, 2 * side)  # a tile of `side` pixels sees twice the detail
    shown = MaskedPicture(over(pixels, "#ffffff"), pixels[..., 3])
    low, high, _ = prepare_reference(shown, side, Augment(flip=0), rng)
    return np.concatenate([low[None], high])
