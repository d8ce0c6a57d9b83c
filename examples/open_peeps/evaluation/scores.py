"""Rates of right answers, and their spread over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from examples.open_peeps.evaluation import measure
from examples.open_peeps.evaluation.generation import Pictures
from examples.open_peeps.evaluation.triples import Triple
from train.workers import parallel_map

Rates = dict[str, float]


def score_all(pictures: Mapping[str, Pictures], triples: Sequence[Triple]) -> dict[str, Rates]:
    """Return the rates of every row of pictures.

    The pictures of one triple in all rows are read together, so that its candidates are rendered
    once.
    """
    by_triple = [np.stack(row) for row in zip(*pictures.values(), strict=True)]
    results = parallel_map(_score_triple, by_triple, triples, chunk=4)
    progress = tqdm(results, desc="reading", total=len(triples), unit="triple", leave=False)
    by_row = zip(*progress, strict=True)
    return {name: measure.rates(row) for name, row in zip(pictures, by_row, strict=True)}


def _score_triple(pictures: Pictures, triple: Triple) -> list[measure.Score]:
    readings = measure.read(pictures, triple.identity, triple.view, triple.others)
    return [measure.score(r, triple.identity, triple.view, triple.reference_view) for r in readings]


def reference_body_rates(
    pictures: Mapping[str, Pictures], triples: Sequence[Triple]
) -> dict[str, float]:
    """Return how often each row's pictures of the empty prompt show the reference's own body."""
    same: dict[str, list[bool]] = {name: [] for name in pictures}
    for n, triple in enumerate(triples):
        of_triple = np.stack([row[n] for row in pictures.values()])
        readings = measure.read(of_triple, triple.identity, triple.reference_view, [])
        for name, reading in zip(pictures, readings, strict=True):
            same[name].append(reading.body == triple.reference_view.body)
    return {name: float(np.mean(answers)) for name, answers in same.items()}


def spread(runs: Sequence[Rates]) -> dict[str, dict[str, object]]:
    """Return each figure of several runs: all values, mean and standard deviation."""
    return {
        key: {
            "each": [round(run[key], 4) for run in runs],
            "mean": round(float(np.mean([run[key] for run in runs])), 4),
            "std": round(float(np.std([run[key] for run in runs], ddof=1)), 4)
            if len(runs) > 1
            else None,
        }
        for key in runs[0]
    }


def table(rows: Mapping[str, Mapping[str, Mapping[str, object]]]) -> str:
    """Format rows of `spread`, which have the same figures, as a table of percentages."""
    names = list(next(iter(rows.values())))
    lines = [" " * 34 + "".join(f"{name:>18}" for name in names)]
    for row, figures in rows.items():
        cells = []
        for name in names:
            mean, std = figures[name]["mean"], figures[name]["std"]
            assert isinstance(mean, float)
            deviation = f" ± {100 * std:.1f}" if isinstance(std, float) else ""
            cells.append(f"{100 * mean:.1f}{deviation}")
        lines.append(f"{row:<34}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)
