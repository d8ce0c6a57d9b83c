"""The experiment with three runs: what it reads of ended runs, and draws."""

import argparse
import json

import pytest

from examples.open_peeps.experiments import effect_curves
from train.effect import ANOTHER, SAME


def test_ended_runs_are_drawn_and_not_repeated(tmp_path, monkeypatch):
    results, figure = tmp_path / "results.json", tmp_path / "figure.svg"
    monkeypatch.setattr(effect_curves, "RESULTS", results)
    monkeypatch.setattr(effect_curves, "FIGURE", figure)
    trained = []
    monkeypatch.setattr(effect_curves, "fill", lambda recipe, overwrite: None)
    monkeypatch.setattr(effect_curves, "train", lambda recipe: trained.append(recipe.out.name))
    (tmp_path / "data").mkdir()
    for name in ("uses-the-reference", "copies-it"):
        (tmp_path / name).mkdir()
        measured = [{"step": n, SAME: n / 1e4, ANOTHER: -n / 1e4} for n in (1, 2, 2, 3)]
        text = "".join(f"{json.dumps(line)}\n" for line in [*measured, {"step": 3, "loss": 1.0}])
        (tmp_path / name / "metrics.jsonl").write_text(text)
    args = argparse.Namespace(
        work=tmp_path, characters=600, set=["stage1.steps=2", "stage2.steps=1"]
    )
    effect_curves.run(args)
    assert trained == ["ignores-it"]
    values = json.loads(results.read_text())
    assert values["copies it"]["effect"]["same picture"] == [
        [0, 0],
        [1, 1e-4],
        [2, 2e-4],
        [3, 3e-4],
    ]
    assert values["settings"]["stage1"]["steps"] == 2
    drawn = figure.read_text()
    assert all(f">{name}<" in drawn for name in effect_curves.RUNS)
    # All charts have the scale of the widest lines.
    assert drawn.count(">0.0004<") == drawn.count(">-0.0004<") == len(effect_curves.RUNS)
    with pytest.raises(ValueError, match="no-such"):
        effect_curves.run(argparse.Namespace(work=tmp_path, characters=1, set=["no-such=3"]))
