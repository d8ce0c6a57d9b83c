"""Small foundations end to end: a MODEL of random weights trained a little, loaded and drawn."""

import jax
import numpy as np
import pytest

from ic_jax import InstantCharacterPipeline
from ic_jax.config import ConfigError
from train.foundations.command import foundations, main
from train.foundations.settings import Settings, change
from train.foundations.words import prompt_ids, tokenizers
from train.foundations.world import HELD, TRAINED, caption, random_view, vocabulary

SMALL = [
    *("pictures=48", "side=16", "vae_widths=[4,8]", "vae_steps=30", "vae_batch=8"),
    *("width=32", "heads=2", "double_blocks=1", "single_blocks=1", "base_steps=30"),
    *("base_batch=16", "encoder_width=16", "text_width=32"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("foundations") / "model"
    with jax.numpy_dtype_promotion("standard"):  # optax raises Adam's decay to an integer
        facts = foundations(out, change(Settings(), SMALL), workers=1)
    return out, facts


@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_the_loss_falls(model, part):
    losses = model[1][part]["loss"]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


def test_the_folder_draws_and_words_matter(model):
    pipe = InstantCharacterPipeline.from_pretrained(model[0], dtype="float32")
    texts = [caption(random_view(np.random.default_rng(n)), TRAINED[n]) for n in range(2)]
    found = pipe(
        texts,
        height=16,
        width=16,
        num_inference_steps=2,
        seed=[0, 0],
        max_sequence_length=16,
        output_type="np",
    ).images
    assert found.shape == (2, 16, 16, 3)
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_trained_parts_are_not_trained_again(model):
    out, facts = model
    again = foundations(out, change(Settings(), SMALL), overwrite=True, workers=1)
    assert again == facts
    with pytest.raises(ConfigError, match="vae_steps"):
        foundations(out, change(Settings(), [*SMALL, "vae_steps=31"]), overwrite=True, workers=1)


def test_every_word_has_an_id_and_captions_fit():
    files, _, _ = tokenizers()
    rng = np.random.default_rng(0)
    longest = max((caption(random_view(rng), one) for one in TRAINED), key=lambda t: t.count(" "))
    clip, t5 = prompt_ids(files, [longest, " ".join(vocabulary()[:12])], Settings().text_length)
    assert 2 not in t5  # unknown
    assert (t5[0] == 1).sum() == 1
    assert clip.shape == (2, 77)


def test_nobody_held_out_is_trained_on():
    assert not set(HELD) & set(TRAINED)
    assert len(HELD) > 50


def test_an_unknown_setting_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "model"), "--set", "vae_step=3"]) == 2
    assert "vae_steps" in capsys.readouterr().err
