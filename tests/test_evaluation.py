"""`python -m infer evaluate`: what is asked is held out and fair, and answers are counted right."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from examples.open_peeps.evaluation import drawing, scores
from examples.open_peeps.evaluation.__main__ import main
from examples.open_peeps.evaluation.triples import CANDIDATES, triples
from examples.open_peeps.world.render import picture
from examples.open_peeps.world.worlds import WORLDS
from ic_jax.config import SamplingConfig
from ic_jax.weights.model_folder import ModelFolder, create

SIDE = 64


@pytest.mark.parametrize(
    ("world", "people"), [(w, p) for w, world in WORLDS.items() for p in world.held_out]
)
def test_triples_are_held_out_fair_and_the_same_every_time(world, people):
    asked = triples(world, people, 6)
    again = triples(world, people, 2) + triples(world, people, 4, first=2)
    for one, other in zip(asked, again, strict=True):
        assert one._replace(reference=None) == other._replace(reference=None)
        assert np.array_equal(one.reference, other.reference)
    trained = set(islice(WORLDS[world].people(0), 2000))
    for one in asked:
        assert one.identity not in trained
        assert one.seen.body != one.view.body
        assert len({one.identity, *one.others}) == CANDIDATES
        assert one.reference.shape[2] == 3


def test_too_many_triples_are_refused():
    with pytest.raises(ValueError, match=r"ask for at most \d+"):
        triples("small", "held out", 10**4)


@pytest.fixture(scope="module")
def asked():
    return triples("small", "held out", 5)


def test_true_pictures_are_read_right_and_the_references_body_as_copied(asked):
    def pictures(view):
        return np.stack([picture(one.identity, view(one), SIDE) for one in asked]) / np.float32(255)

    true, seen = pictures(lambda one: one.view), pictures(lambda one: one.seen)
    copy = pictures(lambda one: replace(one.view, body=one.seen.body))
    found = scores.scored({"true": true, "copy": copy}, asked)
    answers = ("identity", "body", "face", "clothing", "ground")
    assert all(found["true"][name] == 1 for name in answers)
    assert found["true"]["copied"] == 0
    assert found["copy"]["copied"] == 1
    assert found["copy"]["body"] == 0
    assert scores.copied({"seen": seen}, asked) == {"seen": 1}


def test_spread_is_mean_and_deviation():
    found = scores.spread([{"identity": 0.25}, {"identity": 0.75}])["identity"]
    assert found == {"each": [0.25, 0.75], "mean": 0.5, "std": pytest.approx(0.3536)}
    assert scores.spread([{"identity": 0.25}])["identity"]["std"] is None


def test_the_last_batch_has_the_shape_of_the_others(asked, monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 3)
    calls = []

    def pipe(prompts, *, seed, subject_image, subject_scale, output_type):
        calls.append((prompts, seed, subject_image))
        pixels = np.asarray(seed, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3))
        return type("Drawn", (), {"images": pixels})

    drawn = drawing.draw(pipe, asked, 2)
    assert [len(prompts) for prompts, *_ in calls] == [3, 3]
    assert drawn[:, 0, 0, 0].tolist() == [2000, 2001, 2002, 2003, 2004]
    assert calls[1][0][0] == asked[3].prompt
    assert calls[1][2][0] is asked[3].reference


def test_the_command_writes_figures_and_a_sheet(tiny_model, tmp_path, capsys):
    toy = ModelFolder.open(tiny_model)
    with create(tmp_path / "model") as writer:
        for kind in toy.components:
            writer.add_from(toy, kind)
        own = SamplingConfig(SIDE, SIDE, 1, max_sequence_length=16)
        writer.add_config("sampling", own.to_dict())
    out = tmp_path / "out"
    arguments = ["--set=small", f"--model={tmp_path / 'model'}", "--triples=2", f"--out={out}"]
    assert main([*arguments, "--seeds", "0", "1"]) == 0
    assert "identity" in capsys.readouterr().out
    results = json.loads((out / "evaluation.json").read_text())
    figures = results["held out"]
    assert set(figures) >= {"model", "no subject", "another's reference", "the reference itself"}
    assert len(figures["model"]["body"]["each"]) == 2
    assert figures["the reference itself"]["body"]["mean"] == 0
    assert results["conditions"]["seeds"] == [0, 1]
    assert (out / "held-out.png").stat().st_size > 1000
    assert main(arguments) == 2  # what is there is not replaced unasked
