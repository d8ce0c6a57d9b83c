"""Scenes of two held-out people: one known from the reference, the other from prompt or reference.

A generated picture shows the right two if the head of each is nearest to that person's own, among
renders of the scene with other people in that place.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from examples.open_peeps.evaluation import scores
from examples.open_peeps.evaluation.generation import generate
from examples.open_peeps.evaluation.measure import blurred, nearest
from examples.open_peeps.evaluation.triples import CANDIDATES, ORDER, POOL, cut_out
from examples.open_peeps.world import scene_captions, scenes
from examples.open_peeps.world.people import held_out_identities, reference_view
from examples.open_peeps.world.render import HEAD_BOX, Identity
from ic_jax import InstantCharacterPipeline, SubjectPrompt
from ic_jax.cli import say
from train.workers import parallel_map

K = TypeVar("K")


class Pair(NamedTuple):
    """A scene of two people to generate."""

    scene: scenes.Scene
    known: int  # of `scene.figures`: the person of the reference, of whom the prompt tells nothing
    prompt: str
    reference: UInt8[np.ndarray, "h w 3"]
    others: tuple[Identity, ...]  # candidates beside the right one, for either place
    untold: str  # the prompt without any identity
    other_reference: UInt8[np.ndarray, "h w 3"]


def held_out_pairs(count: int) -> list[Pair]:
    """Return `count` pairs; the nth is the same for every model and every count."""
    everyone = list(islice(held_out_identities(ORDER), POOL))
    return [_pair(everyone, n) for n in range(count)]


def _pair(everyone: Sequence[Identity], n: int) -> Pair:
    rng = np.random.default_rng((n, ORDER, 2))
    first, second, *others = (everyone[k] for k in rng.permutation(len(everyone)))
    scene = scenes.pair((first, second), rng)
    known = next(i for i, f in enumerate(scene.figures) if f.identity == first)
    return Pair(
        scene,
        known,
        scene_captions.in_full(scene, (1 - known,), rng),
        cut_out(first, reference_view(rng)),
        tuple(others[: CANDIDATES - 1]),
        scene_captions.in_full(scene, (), rng),
        cut_out(second, reference_view(rng)),
    )


def evaluate(
    pipe: InstantCharacterPipeline, count: int, seeds: Sequence[int]
) -> dict[str, dict[str, dict[str, object]]]:
    """Generate `count` pairs with every seed, print how often people are recognised, return it.

    Once with one person's reference and the other in the prompt, and once with a reference and a
    region for each.
    """
    questions = held_out_pairs(count)
    rows: dict[str, Any] = {"model": generate, "model, a reference of each": _generate_groups}
    drawn = {
        (row, seed): draw(pipe, questions, seed, name="two people")
        for row, draw in rows.items()
        for seed in seeds
    }
    read = rates(drawn, questions)
    figures = {row: scores.spread([read[row, seed] for seed in seeds]) for row in rows}
    say(f"\n{count} scenes of two people, percent recognised\n{scores.table(figures)}")
    return figures


def _generate_groups(
    pipe: InstantCharacterPipeline, pairs: Sequence[Pair], seed: int, *, name: str
) -> Float[np.ndarray, "n h w 3"]:
    return generate(
        pipe, pairs, seed, name=name, prompt=lambda pair: pair.untold, subjects=_subjects
    )


def _subjects(pair: Pair) -> list[SubjectPrompt]:
    places = {pair.known: pair.reference, 1 - pair.known: pair.other_reference}
    return [
        SubjectPrompt(reference, region=scenes.region(pair.scene, place))
        for place, reference in places.items()
    ]


def rates(
    pictures: Mapping[K, Float[np.ndarray, "n h h 3"]], pairs: Sequence[Pair]
) -> dict[K, dict[str, float]]:
    """Return the shares of right people of each row: of the reference, the other one, and both.

    The pictures of one pair in all rows are read together, so that its candidates are rendered
    once.
    """
    by_pair = [np.stack(row) for row in zip(*pictures.values(), strict=True)]
    results = parallel_map(recognised, by_pair, pairs, chunk=4)
    answers = np.array(list(tqdm(results, "reading", len(pairs), unit="pair", leave=False)))
    values = {}
    for n, row in enumerate(pictures):
        known, other = answers[:, n].T
        right = {"of the reference": known, "the other": other, "both": known & other}
        values[row] = {name: round(float(np.mean(x)), 4) for name, x in right.items()}
    return values


def recognised(pictures: Float[np.ndarray, "r h h 3"], pair: Pair) -> Bool[np.ndarray, "r 2"]:
    """Return whether the person of the reference and the other one are recognised."""
    return np.stack([_are_right(pictures, pair, n) for n in (pair.known, 1 - pair.known)], axis=1)


def _are_right(pictures: np.ndarray, pair: Pair, place: int) -> Bool[np.ndarray, "r"]:
    size, figures = pictures.shape[1], pair.scene.figures
    left, top, right, bottom = scenes.box_of(figures[place], HEAD_BOX, size)
    box = max(0, int(left)), max(0, int(top)), int(right) + 1, int(bottom) + 1
    renders = []
    for person in (figures[place].identity, *pair.others):
        shown = tuple(
            f._replace(identity=person) if n == place else f for n, f in enumerate(figures)
        )
        renders.append(scenes.picture(pair.scene._replace(figures=shown), size))
    return np.equal(nearest(blurred(pictures, box), blurred(np.stack(renders), box)), 0)
