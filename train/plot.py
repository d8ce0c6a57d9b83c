"""`python -m train plot`: a run's reference effect and loss as PNG and HTML."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ic_jax.config import ConfigError
from ic_jax.files import atomic_file, atomic_write
from ic_jax.untrusted_files import read_bytes
from train import chart
from train.chart import Chart
from train.effect import ANOTHER, EFFECT, SAME
from train.export import recipe_in
from train.recipe import Recipe
from train.run_folder import read_metrics

MEAN_OF = 10  # log lines in the running mean of the loss
STYLE = (
    "body{font-family:sans-serif;max-width:960px;margin:2em auto;padding:0 1em}svg,img{width:100%}"
)


def plot(run: Path) -> list[Path]:
    """Write RUN/plot.png and RUN/plot.html, which needs no other file; return their paths.

    A run in progress can be plotted: only what it logs is read.

    Raises:
        ConfigError: `run` is no RUN folder, or has logged nothing yet.
    """
    recipe = recipe_in(run)
    lines = read_metrics(run)
    if not lines:
        steps = recipe.reporting.every
        raise ConfigError(f"{run} has logged nothing yet; train at least {steps} steps")
    charts = charts_of(lines, recipe)
    picture, page = run / "plot.png", run / "plot.html"
    with atomic_file(picture) as part:
        chart.picture(charts).save(part, "PNG")
    atomic_write(page, _page(run, recipe, lines, charts).encode())
    return [picture, page]


def charts_of(lines: Sequence[dict[str, Any]], recipe: Recipe) -> list[Chart]:
    """Return the charts of what was logged; the reference effect, if measured, is the first."""

    def line(name: str) -> list[tuple[float, float]]:
        return [(x["step"], x[name]) for x in lines if name in x]

    marks = {name: first for name, first in recipe.first_steps().items() if first}
    effects = {"same picture": SAME, "another picture": ANOTHER}
    if not line(SAME):  # no character has another picture, or the run is of an earlier version
        effects = {EFFECT: EFFECT}
    bins = sorted({name for x in lines for name in x if name.startswith("loss/sigma")})
    figures = {
        EFFECT: {words: line(name) for words, name in effects.items()},
        "loss": {"loss": line("loss"), f"mean of {MEAN_OF}": _running_mean(line("loss"))},
        "loss by noise level": {x.removeprefix("loss/sigma "): line(x) for x in bins},
        "learning rate": {"learning rate": line("learning rate")},
    }
    charts = []
    for title, named in figures.items():
        if drawn := {words: points for words, points in named.items() if points}:
            charts.append(Chart(title, drawn, marks, (0.0,) if title == EFFECT else ()))
    return charts


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    means = []
    for i, (step, _) in enumerate(points):
        last = [y for _, y in points[max(0, i + 1 - MEAN_OF) : i + 1]]
        means.append((step, sum(last) / len(last)))
    return means


def _page(run: Path, recipe: Recipe, lines: Sequence[dict[str, Any]], charts: list[Chart]) -> str:
    newest: dict[str, Any] = {}
    for line in lines:
        newest |= line
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:.6g}</td></tr>" for name, value in newest.items()
    )
    title = escape(f"{run}: step {newest['step']} of {recipe.total_steps}")
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style>\n<h1>{title}</h1>\n{chart.svg(charts)}\n{_preview(run)}"
        f"<h2>Newest figures</h2>\n<table>{rows}</table>\n<h2>Recipe</h2>\n"
        f"<pre>{escape(json.dumps(recipe.to_dict(), indent=1))}</pre>\n</html>\n"
    )


def _preview(run: Path) -> str:
    """Return the newest preview as HTML, or nothing."""
    files = sorted((run / "previews").glob("*.png"))
    if not files:
        return ""
    data = base64.b64encode(read_bytes(files[-1])).decode()
    return f'<h2>Newest preview</h2>\n<img alt="preview" src="data:image/png;base64,{data}">\n'
