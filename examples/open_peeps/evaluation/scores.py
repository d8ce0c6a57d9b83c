"""Answers to what pictures show, as rates with their spread over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from examples.open_peeps.evaluation import measure
from examples.open_peeps.evaluation.drawing import Pictures
from examples.open_peeps.evaluation.triples import Triple
from train.workers import mapped

Rates = dict[str, float]


def scored(drawn: Mapping[str, Pictures], asked: Sequence[Triple]) -> dict[str, Rates]:
    """Every row's rates; a triple's pictures of all rows are read at once."""
    pictures = [np.stack(of_one) for of_one in zip(*drawn.values(), strict=True)]
    every = mapped(_scores, pictures, asked, chunk=16)
    found = list(tqdm(every, desc="reading", total=len(asked), unit="triple", leave=False))
    return {
        name: measure.rates(of_row)
        for name, of_row in zip(drawn, zip(*found, strict=True), strict=True)
    }


def _scores(pictures: Pictures, one: Triple) -> list[measure.Score]:
    found = measure.read(pictures, one.identity, one.view, one.others)
    return [measure.score(reading, one.identity, one.view, one.seen) for reading in found]


def copied(drawn: Mapping[str, Pictures], asked: Sequence[Triple]) -> dict[str, float]:
    """How often each row's pictures of the empty prompt show the reference's own body."""
    same: dict[str, list[bool]] = {name: [] for name in drawn}
    for n, one in enumerate(asked):
        pictures = np.stack([row[n] for row in drawn.values()])
        found = measure.read(pictures, one.identity, one.seen, [])
        for name, reading in zip(drawn, found, strict=True):
            same[name].append(reading.body == one.seen.body)
    return {name: float(np.mean(found)) for name, found in same.items()}


def spread(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, object]]:
    """Each figure of several runs: all of them, mean and standard deviation."""
    return {
        key: {
            "each": [round(row[key], 4) for row in rows],
            "mean": round(float(np.mean([row[key] for row in rows])), 4),
            "std": round(float(np.std([row[key] for row in rows], ddof=1)), 4)
            if len(rows) > 1
            else None,
        }
        for key in rows[0]
    }


def table(rows: Mapping[str, Mapping[str, Mapping[str, object]]]) -> str:
    """Rows of `spread` as percent, in columns."""
    names = ("identity", "body", "face", "clothing", "ground", "copied")
    lines = [" " * 34 + "".join(f"{name:>16}" for name in names)]
    for row, figures in rows.items():
        cells = []
        for name in names:
            mean, std = figures[name]["mean"], figures[name]["std"]
            assert isinstance(mean, float)
            more = f" ± {100 * std:.1f}" if isinstance(std, float) else ""
            cells.append(f"{100 * mean:.1f}{more}")
        lines.append(f"{row:<34}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)
