"""The evaluation: its people are held out, its questions fair, its answers counted right."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from examples.open_peeps.evaluation import generation, scores
from examples.open_peeps.evaluation.commands import main
from examples.open_peeps.evaluation.triples import CANDIDATES, held_out_triples
from examples.open_peeps.world.render import picture
from examples.open_peeps.world.worlds import WORLDS
from ic_jax.config import SamplingConfig
from ic_jax.weights.model_folder import ModelFolder, create

SIDE = 64


@pytest.mark.parametrize(
    ("world", "people"), [(w, p) for w, world in WORLDS.items() for p in world.held_out]
)
def test_triples_are_held_out_fair_and_the_same_every_time(world, people):
    triples = held_out_triples(world, people, 6)
    again = held_out_triples(world, people, 2) + held_out_triples(world, people, 4, first=2)
    for triple, other in zip(triples, again, strict=True):
        assert triple._replace(reference=None) == other._replace(reference=None)
        assert np.array_equal(triple.reference, other.reference)
    trained = set(islice(WORLDS[world].people(0), 2000))
    for triple in triples:
        assert triple.identity not in trained
        assert triple.reference_view.body != triple.view.body
        assert len({triple.identity, *triple.others}) == CANDIDATES
        assert triple.reference.shape[2] == 3


def test_too_many_triples_are_refused():
    with pytest.raises(ValueError, match=r"ask for at most \d+"):
        held_out_triples("small", "held out", 10**4)


@pytest.fixture(scope="module")
def triples():
    return held_out_triples("small", "held out", 5)


def test_true_pictures_are_read_right_and_the_references_body_as_copied(triples):
    def pictures(view):
        return np.stack([picture(t.identity, view(t), SIDE) for t in triples]) / np.float32(255)

    true, reference = pictures(lambda t: t.view), pictures(lambda t: t.reference_view)
    copy = pictures(lambda t: replace(t.view, body=t.reference_view.body))
    rates = scores.score_all({"true": true, "copy": copy}, triples)
    answers = ("identity", "body", "face", "clothing", "ground")
    assert all(rates["true"][name] == 1 for name in answers)
    assert rates["true"]["copied"] == 0
    assert rates["copy"]["copied"] == 1
    assert rates["copy"]["body"] == 0
    assert scores.reference_body_rates({"reference": reference}, triples) == {"reference": 1}


def test_spread_is_mean_and_deviation():
    figure = scores.spread([{"identity": 0.25}, {"identity": 0.75}])["identity"]
    assert figure == {"each": [0.25, 0.75], "mean": 0.5, "std": pytest.approx(0.3536)}
    assert scores.spread([{"identity": 0.25}])["identity"]["std"] is None


def test_the_last_batch_has_the_shape_of_the_others(triples, monkeypatch):
    monkeypatch.setattr(generation, "BATCH", 3)
    calls = []

    def pipe(prompts, *, seed, subject_image, subjects, subject_scale, width, output_type):
        calls.append((prompts, seed, subject_image))
        pixels = np.asarray(seed, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3))
        return type("Result", (), {"images": pixels})

    pictures = generation.generate(pipe, triples, 2)
    assert [len(prompts) for prompts, *_ in calls] == [3, 3]
    assert pictures[:, 0, 0, 0].tolist() == [2000, 2001, 2002, 2003, 2004]
    assert calls[1][0][0] == triples[3].prompt
    assert calls[1][2][0] is triples[3].reference


@pytest.mark.slow  # compiles encoders, sampler with and without subject, and VAE, for one test
def test_the_command_writes_figures_and_a_sheet(tiny_model, tmp_path, capsys):
    tiny = ModelFolder.open(tiny_model)
    with create(tmp_path / "model") as writer:
        for component in tiny.components:
            writer.add_from(tiny, component)
        sampling = SamplingConfig(SIDE, SIDE, 1, max_sequence_length=16)
        writer.add_config("sampling", sampling.to_dict())
    out = tmp_path / "out"
    arguments = ["--world=small", f"--model={tmp_path / 'model'}", "--triples=2", f"--out={out}"]
    assert main([*arguments, "--seeds", "0", "1"]) == 0
    assert "identity" in capsys.readouterr().out
    results = json.loads((out / "evaluation.json").read_text())
    figures = results["held out"]
    assert set(figures) >= {"model", "no subject", "another's reference", "the reference itself"}
    assert len(figures["model"]["body"]["each"]) == 2
    assert figures["the reference itself"]["body"]["mean"] == 0
    assert results["conditions"]["seeds"] == [0, 1]
    assert (out / "held-out.png").stat().st_size > 1000
    assert main(arguments) == 2  # an existing folder is not replaced without --overwrite
