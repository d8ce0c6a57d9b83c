"""Reports: the lines that a resumed run keeps, wandb's run, losses by noise level."""

import json
import sys
from types import SimpleNamespace

import numpy as np

from train.report import Report, by_sigma


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def report(run, last_step, *values):
    lines = Report(run, last_step, "", {})
    for step in values:
        lines.scalars(step, {"loss": 1.0})
    lines.close()


def test_every_step_stands_there_once(tmp_path):
    report(tmp_path, 0, 2, 4, 6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # cut by a kill
    report(tmp_path, 4, 6, 8)  # from the checkpoint of step 4
    assert steps(tmp_path) == [2, 4, 6, 8]
    report(tmp_path, 8)
    assert steps(tmp_path) == [2, 4, 6, 8]


def test_a_resumed_run_is_the_same_one_to_wandb(tmp_path, monkeypatch):
    run_ids = []

    def init(**options):
        run_ids.append(options["id"])
        return SimpleNamespace(id=options["id"] or "fresh", finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for _ in range(2):
        Report(tmp_path, 0, "project", {}).close()
    assert run_ids == [None, "fresh"]


def test_losses_by_noise_level():
    means = by_sigma(np.array([1.0, 3.0, 5.0, 7.0]), np.array([0.1, 0.2, 0.5, 1.0]))
    assert means == {
        "loss/sigma 0.00-0.25": 2.0,
        "loss/sigma 0.50-0.75": 5.0,
        "loss/sigma 0.75-1.00": 7.0,
    }
