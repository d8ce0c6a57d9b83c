"""Reports: the lines that a resumed run keeps, wandb's run, losses by noise level."""

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.data.errors import DataError
from train.event_file import EventFile
from train.nonfinite import NonfiniteStop
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


def test_tensorboard_shows_every_step_once(tmp_path, monkeypatch):
    """Read the events with TensorBoard's own reader, of two files whose names tell seconds."""
    monkeypatch.setattr("time.time", iter(map(float, range(1000, 2000))).__next__)
    pixels = np.full((8, 16, 3), 90, np.uint8)
    for first, values in ((1, [0.5, 0.25, 0.125]), (3, [9.0])):
        events = EventFile(tmp_path, first)
        for step, value in enumerate(values, first):
            events.scalar("loss", value, step)
        events.picture("preview", pixels, first)
        events.close()
    seen = EventAccumulator(str(tmp_path)).Reload()
    assert [(x.step, x.value) for x in seen.Scalars("loss")] == [(1, 0.5), (2, 0.25), (3, 9.0)]
    pictures = [(x.step, x.width, x.height) for x in seen.Images("preview")]
    assert pictures == [(1, 16, 8), (3, 16, 8)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("call", ["scalar", "flush", "close"])
def test_a_full_disk_is_told_with_its_file_by_the_thread_that_reports(tmp_path, monkeypatch, call):
    opened = []

    def full(*_):
        opened.append(open("/dev/full", "wb"))  # noqa: SIM115
        return opened[0]

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr("train.event_file.FLUSH_SECONDS", -1)
    threads = threading.active_count()
    events = EventFile(tmp_path, 1)
    told = rf"No space left on device: '{tmp_path}/events\.out\.tfevents\."
    calls = {
        "scalar": lambda: [events.scalar("loss", 1.0, step) for step in range(1000)],
        "flush": events.flush,
        "close": events.close,
    }
    with pytest.raises(OSError, match=told):
        calls[call]()
    if call != "close":
        with pytest.raises(OSError, match=told):
            events.close()
    assert opened[0].closed
    assert threading.active_count() == threads


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_report_on_a_full_disk_closes_all_its_files(tmp_path):
    lines = Report(tmp_path, 0, "", {})
    lines._lines.close()
    lines._lines = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        lines.scalars(1, {"loss": 1.0})
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        lines.close()
    assert lines._lines.closed
    assert lines._events._records._writer.closed


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


def test_what_is_not_finite_is_left_out_of_the_lines(tmp_path):
    lines = Report(tmp_path, 0, "", {})
    lines.scalars(3, {"loss": float("nan"), "gradient norm": float("inf"), "nonfinite steps": 3})
    lines.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 3, "nonfinite steps": 3}


class Pictures:
    """Data set whose record 7 is damaged."""

    def read(self, number):
        if number == 7:
            raise DataError("damaged")
        return SimpleNamespace(file=f"ana/{number}.png")


def test_a_run_stops_two_steps_after_its_limit_and_names_the_pictures():
    stop = NonfiniteStop(3, Pictures())
    counts = [1, 2, 0, 1, 2, 3, 4, 5]
    for step, count in enumerate(counts[:-1], 1):
        stop.add(step, jnp.int32(count), np.array([step, 7]))
    with pytest.raises(FloatingPointError) as error:
        stop.add(8, jnp.int32(5), np.array([8, 7]))
    assert str(error.value).startswith(
        "3 steps in a row up to step 6 had a loss or gradient that is not finite; they saw record "
        "4 (ana/4.png), record 5 (ana/5.png), record 6 (ana/6.png), record 7; lower"
    )


def test_the_last_steps_of_a_run_are_looked_at_too():
    stop = NonfiniteStop(1, Pictures())
    stop.add(1, jnp.int32(1), np.array([2]))
    with pytest.raises(FloatingPointError, match=r"1 steps in a row up to step 1 .*ana/2\.png"):
        stop.finish()
