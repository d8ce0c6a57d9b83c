"""The model that comes with ic_jax: it draws whom it is shown, and PyTorch's libraries read it."""

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

from convert.commands import main as convert
from examples.open_peeps.evaluation import generation, scores
from examples.open_peeps.evaluation.triples import held_out_triples
from ic_jax import InstantCharacterPipeline
from ic_jax.weights import loading
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from tests.oracle import relative


@pytest.fixture(scope="module")
def pipe():
    return InstantCharacterPipeline.from_pretrained(dtype="float32")


def test_it_fits_into_a_wheel():
    sizes = [file.stat().st_size for file in SMALL_MODEL.rglob("*") if file.is_file()]
    assert sum(sizes) < 40e6
    assert max(sizes) < 15e6
    ModelFolder.open(SMALL_MODEL).verify()


@pytest.mark.slow  # draws several batches with the whole model
def test_it_draws_whom_it_is_shown_and_what_it_is_told(pipe, monkeypatch):
    monkeypatch.setattr(generation, "BATCH", 16)
    triples = held_out_triples("peeps", "known parts", 16)
    drawn = {
        "shown": generation.generate(pipe, triples, 0),
        "not shown": generation.generate(pipe, triples, 0, subject=False),
    }
    score = scores.score_all(drawn, triples)
    # Far below what it reaches (docs/small-model.md), and far above chance: 2%, 1 in 62, 31, 8.
    assert score["shown"]["identity"] >= 0.5
    assert score["shown"]["face"] >= 0.1
    assert score["shown"]["body"] >= 0.8
    assert score["shown"]["clothing"] >= 0.8
    assert score["shown"]["copied"] <= 0.1
    assert score["not shown"]["identity"] <= 0.1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "torch"
    assert convert(["to-torch", str(SMALL_MODEL), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("siglip", transformers.SiglipVisionModel), ("dinov2", transformers.Dinov2Model)],
)
def test_transformers_sees_the_same_with_it(exported, name, theirs):
    oracle = theirs.from_pretrained(exported / name, dtype=torch.float32)
    ours = getattr(loading.load_model(SMALL_MODEL, "float32", components={name}), name)
    side = ours.config.image_size
    pixels = np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        expected = oracle(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).last_hidden_state
    hidden, _ = jax.jit(ours)(pixels)
    assert relative(hidden, expected.numpy()) < 1e-4


def test_diffusers_draws_the_same_with_it(pipe, exported):
    theirs = diffusers.FluxPipeline.from_pretrained(exported / "flux", torch_dtype=torch.float32)
    prompt, steps = "A person drinking coffee in a yellow shirt, on plain teal.", 3
    side, text_length = pipe.sampling.height, pipe.sampling.max_sequence_length
    shape = (1, (side // 16) ** 2, 64)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = theirs(
        prompt,
        height=side,
        width=side,
        num_inference_steps=steps,
        latents=torch.from_numpy(noise),
        max_sequence_length=text_length,
        output_type="np",
    ).images
    ours = pipe(
        prompt, num_inference_steps=steps, true_cfg_scale=1.0, latents=noise, output_type="np"
    ).images
    assert relative(ours, expected) < 1e-4
