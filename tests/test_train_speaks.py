"""What a run says: warnings of its recipe, silences, time left, changes, previews and plots."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from ic_jax import cli
from train import chart, progress, speaker
from train.chart import Chart, _ticks
from train.commands import main
from train.effect import ANOTHER, EFFECT, SAME, reading
from train.progress import Progress
from train.recipe import LoraConfig, Recipe, Reporting, Saving, Stage
from train.recipe_warnings import recipe_warnings
from train.run_folder import Stopped
from train.speaker import Speaker, duration
from train.start_block import changes_since_start


def recipe(*stages, out="o", **settings):
    named = {f"stage{i}": stage for i, stage in enumerate(stages, 1)}
    return Recipe(Path("m"), Path("d"), Path(out), named, **settings)


def test_what_a_short_run_never_reaches_is_warned_of():
    stage = Stage(steps=50, early_steps=60, early_text_dropout=1.0, subject_dropout=1.0)
    lines = recipe_warnings(recipe(stage))
    expected = [
        ("stage1.warmup is 100, and the stage has 50 steps", "set it to 5"),
        ("stage1.early_steps is 60, and the stage has 50 steps", "set it to 12"),
        ("stage1.subject_dropout is 1", "set it to 0.05"),
        ("reporting.effect_every is 250, and the run has 50 steps", "set it to 10"),
        ("reporting.preview_every is 500, and the run has 50 steps", "set it to 10"),
        ("saving.every is 500, and the run has 50 steps", "set it to 10"),
    ]
    assert len(lines) == len(expected)
    for line, (value, remedy) in zip(lines, expected, strict=True):
        assert value in line
        assert line.endswith(remedy)


def test_a_recipe_that_fits_is_not_warned_of():
    assert recipe_warnings(recipe(Stage(steps=20_000), Stage(steps=1000))) == []
    short = recipe(
        Stage(steps=100, warmup=10),
        lora=LoraConfig(),
        holdout=0.0,
        saving=Saving(every=50),
        reporting=Reporting(preview_every=50),
    )
    assert recipe_warnings(short) == []
    early = replace(short, reporting=Reporting(preview_every=5))
    assert "the first previews show nearly untrained weights" in recipe_warnings(early)[0]


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    for module in (speaker, progress):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now.seconds)
    return now


def test_a_silence_is_announced_with_what_it_took_last_time(tmp_path, capsys, clock):
    for took in (90.0, 1.0, 1.0):
        with Speaker(tmp_path).silence("drawing previews", step=7):
            clock.seconds += took
    assert capsys.readouterr().out.splitlines() == [
        "drawing previews after step 7 ...",
        "drawing previews after step 7 (1:30 last time) ...",
    ]
    assert duration(3.25) == "3.2 s"
    assert duration(3725) == "1:02:05"


def test_the_time_left_is_that_of_all_stages(tmp_path, capsys, clock):
    stages = recipe(Stage(steps=11), Stage(steps=5))
    run = Progress(stages, Speaker(tmp_path), {"stage1": 1.0, "stage2": 4.0})
    run.report(1, {"loss": 2.0})
    run.begin(1)
    clock.seconds = 20.0
    effects = {EFFECT: 0.5, SAME: 0.6, ANOTHER: 0.4, "loss/right reference": 1.0}
    run.report(6, effects)  # 5 of the steps took 20 s; 5 and 4 times 5 remain
    run.summarise()
    first, *summary = capsys.readouterr().out.splitlines()
    assert first == (
        "step 6: reference effect 0.5000 (0.6000 with the same picture, 0.4000 with another "
        "picture); 1:40 left"
    )
    assert summary[0] == "trained 16 steps: o"
    assert "the adapter uses its reference" in summary[2]
    assert summary[-1].strip() == "python -m train export o --out MODEL"


def test_effects_are_read():
    values = {EFFECT: 0.0, "loss/right reference": 1.0}
    assert "ignores" in reading(values)
    assert "copies" in reading(values | {EFFECT: 0.1, SAME: 0.1, ANOTHER: 0.05})
    assert "uses" in reading(values | {EFFECT: 0.1, SAME: 0.1, ANOTHER: 0.08})


def test_changes_since_the_start_outlive_several_starts(tmp_path):
    first = recipe(Stage(steps=10), out=tmp_path)
    assert changes_since_start(first, 0) == []
    longer = recipe(Stage(steps=20), Stage(steps=5), out=tmp_path)
    for _ in range(2):
        changes = changes_since_start(longer, 4)
        assert "stage1.steps was 10 at the start and is 20" in changes
        assert "stage2.steps was None at the start and is 5" in changes
    assert changes_since_start(longer, 0) == []  # a new run


def test_a_run_of_an_earlier_version_takes_its_last_recipe(tmp_path):
    earlier = recipe(Stage(steps=10), out=tmp_path).to_dict()
    (tmp_path / "recipe.json").write_text(json.dumps(earlier))
    changes = changes_since_start(recipe(Stage(steps=10, batch=8), out=tmp_path), 4)
    assert changes == ["stage1.batch was 32 at the start and is 8"]


def test_a_request_to_stop_is_no_error(capsys):
    def stop():
        raise Stopped("stopped after step 3 of 9, as asked; go on with: python -m train r.toml")

    assert cli.run(stop) == 75
    assert capsys.readouterr().err.startswith("stopped after step 3 of 9")


def test_ticks_are_round_and_enclose():
    assert _ticks(0, 100) == [0, 50, 100]
    assert _ticks(-0.01, 0.032) == [-0.02, 0.0, 0.02, 0.04]
    assert len(_ticks(3.0, 3.0)) >= 2


def test_a_run_is_plotted(tmp_path, capsys):
    run = recipe(Stage(steps=20), Stage(steps=20), out=tmp_path)
    assert main(["plot", str(tmp_path)]) == 2
    (tmp_path / "recipe.json").write_text(json.dumps(run.to_dict()))
    assert main(["plot", str(tmp_path)]) == 2
    assert "has logged nothing yet; train at least 10 steps" in capsys.readouterr().err
    lines = [
        {"step": n, "loss": 1 / n, "loss/sigma 0.00-0.25": 2.0, EFFECT: n / 100, SAME: 0.1}
        for n in range(10, 41, 10)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 50, "lo')
    (tmp_path / "previews").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "previews" / "0000040.png")
    assert main(["plot", str(tmp_path)]) == 0
    assert str(tmp_path / "plot.png") in capsys.readouterr().out
    assert Image.open(tmp_path / "plot.png").size == (1800, 3 * 600)
    page = (tmp_path / "plot.html").read_text()
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    assert sum(tag == "polyline" for tag, _ in tags) > 10
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    for name in ("reference effect", "same picture", "loss by noise level", "stage2"):
        assert f">{name}</text>" in page


def test_text_of_a_chart_is_escaped():
    assert "&lt;b&gt;" in chart.svg([Chart("<b>", {"x": [(1.0, 2.0)]})])
