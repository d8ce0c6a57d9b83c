"""The base model end to end: random weights trained for a few steps, loaded, and sampled."""

import filecmp
import shutil
from contextlib import contextmanager
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.open_peeps.base_model import continue_training, loss_weights
from examples.open_peeps.base_model.autoencoder import encode_all, train_decoder
from examples.open_peeps.base_model.commands import main
from examples.open_peeps.base_model.config import PEEPS, SMALL, change
from examples.open_peeps.base_model.fit import FitOptions, fit
from examples.open_peeps.base_model.renders import render_rows, render_views
from examples.open_peeps.base_model.text_encoders import read_neighbours, text_encoders
from examples.open_peeps.base_model.training import train_base_model
from examples.open_peeps.base_model.word_tokenizer import prompt_ids, tokenizers
from examples.open_peeps.world.people import BODIES
from examples.open_peeps.world.render import FACE_BOX, View, body_kind, picture, pixel_box
from examples.open_peeps.world.small_world import HELD, TRAINED, caption, random_view
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline
from ic_jax.config import ConfigError
from ic_jax.weights import loading
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from tests.oracle import relative

slow = pytest.mark.slow  # compiles and trains five models, which takes minutes

TINY = [
    *("pictures=48", "side=16", "vae_widths=[4,8]", "vae_steps=30", "vae_batch=8", "vae_crop=8"),
    *("width=32", "heads=2", "double_blocks=1", "single_blocks=1", "base_steps=120"),
    *(
        "head_share=0.5",
        "base_batch=16",
        "encoder_width=16",
        "encoder_patch=4",
        "text_width=32",
        "train_text=true",
    ),
    *("subjects=32", "siglip_steps=30", "dinov2_steps=30", "encoder_batch=16"),
]


@contextmanager
def training():
    """Train on one device, for which XLA compiles faster than for eight."""
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        # The promotion is optax's: it raises Adam's decay to an integer.
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "model"
    with training():
        figures = train_base_model(out, change(SMALL, TINY), workers=1)
    return out, figures


@slow
@pytest.mark.parametrize("part", ["vae", "transformer+t5+clip", "siglip", "dinov2"])
def test_the_loss_falls(model, part):
    losses = model[1][part]["loss"]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


@slow
def test_the_folder_draws_and_words_matter(model):
    pipe = InstantCharacterPipeline.from_pretrained(model[0], dtype="float32")
    texts = [caption(random_view(np.random.default_rng(n)), TRAINED[n]) for n in range(2)]
    generated = pipe(
        texts,
        num_inference_steps=2,
        seed=[0, 0],
        output_type="np",
    ).images
    assert generated.shape == (2, 16, 16, 3)
    assert np.isfinite(generated).all()
    assert np.abs(generated[0] - generated[1]).max() > 1e-4


@slow
def test_a_decoder_trained_further_leaves_the_latents_alone(model, tmp_path):
    config = change(SMALL, TINY)
    renders = render_views("small", 48, config.side, 1, workers=1)

    def vae():
        return loading.load_component(ModelFolder.open(model[0]), "vae", "float32")

    with training():
        options = FitOptions(30, 8, 2e-3, 0, tmp_path / "decoder.state")
        further, figures = train_decoder(config, renders, options, vae())
        before, after = (encode_all(x, renders.pixels[:8]) for x in (vae(), further))
    assert np.mean(figures["loss"][-5:]) < 0.95 * np.mean(figures["loss"][:5])
    assert further.config == vae().config
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_part_trained_further_at_another_size_leaves_the_others_as_they_are(
    tmp_path, monkeypatch, capsys
):
    settings = []

    def brighter(start, config, options):
        settings.append((config.side, options.steps, options.learning_rate))
        options.checkpoint.mkdir()
        bias = start["vae"].decoder.conv_out.bias
        bias.set_value(bias[...] + 1)
        return (start["vae"],), {"loss": [1.0]}

    monkeypatch.setitem(continue_training.PARTS, "decoder", (("vae",), 2, 1e-3, brighter))
    out = tmp_path / "OUT"
    command = ["continue", "decoder", str(SMALL_MODEL), str(out), "--steps", "3"]
    assert main([*command, "--side", "0"]) == 2
    assert "it must be at most side, 0" in capsys.readouterr().err
    assert main([*command, "--side", "144"]) == 0
    assert settings == [(144, 3, 1e-3)]
    files = [f.relative_to(out) for f in out.rglob("*") if f.is_file()]
    changed = {
        f.parts[0] for f in files if not filecmp.cmp(out / f, SMALL_MODEL / f, shallow=False)
    }
    assert changed == {"vae", "sampling", "manifest.json"}
    sizes = [
        loading.read_config(ModelFolder.open(m), "sampling").height for m in (SMALL_MODEL, out)
    ]
    assert sizes == [128, 144]
    assert [p.name for p in tmp_path.iterdir()] == ["OUT"]


@slow
def test_trained_parts_are_not_trained_again(model):
    out, figures = model
    again = train_base_model(out, change(SMALL, TINY), overwrite=True, workers=1)
    assert again == figures
    with pytest.raises(ConfigError, match="vae_steps"):
        train_base_model(out, change(SMALL, [*TINY, "vae_steps=31"]), overwrite=True, workers=1)


@pytest.mark.parametrize(("world", "length"), [("small", 16), ("peeps", 40)])
def test_every_word_of_a_world_has_an_id_and_captions_fit(world, length):
    world, rng = WORLDS[world], np.random.default_rng(0)
    files, *_ = tokenizers(world.words())
    people = list(islice(world.people(0), 300))
    texts = [world.caption(world.view(rng), person, rng) for person in people]
    texts += [world.caption(world.view(rng), None, rng) for _ in people]
    clip, t5 = prompt_ids(files, texts, length)
    assert 2 not in t5  # unknown
    assert ((t5 == 1).sum(1) == 1).all()  # none is cut before its end
    assert clip.shape == (len(texts), 77)


def test_words_begin_by_reading_their_neighbours():
    """Else FLUX cannot learn which of two garments a colour belongs to."""
    t5, _ = text_encoders(PEEPS.t5(400), PEEPS.clip(400), 0)
    read_neighbours(t5)
    ids = np.random.default_rng(0).integers(3, 400, (64, 20))

    @jax.jit
    def states_of_word_10(ids):
        return t5(ids)[:, 10]

    def change(at):
        other = ids.copy()
        other[:, at] = ids[::-1, at]
        return np.abs(states_of_word_10(other) - states_of_word_10(ids)).mean()

    near, far = [change(at) for at in (8, 9, 11, 12)], [change(at) for at in (3, 15)]
    assert min(near) > 2 * max(far)


def test_a_fit_stopped_on_its_way_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.open_peeps.base_model.fit.SAVE_SECONDS", 0)
    data = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    options = FitOptions(10, batch=8, learning_rate=0.1, seed=0, checkpoint=tmp_path / "state")

    def loss(module, batch, key):
        noise = jax.random.normal(key) * module["w"].sum()
        return jnp.square(module["w"][None] - batch).mean() + noise

    def run(data):
        with jax.numpy_dtype_promotion("standard"):  # for optax
            return fit("toy", {"w": jnp.ones(3)}, loss, data, options)

    class Stops:
        """Rows that cannot be had at the seventh batch."""

        shape, reads = data.shape, 0

        def __len__(self):
            return len(data)

        def __getitem__(self, at):
            self.reads += 1
            if self.reads == 7:
                raise KeyboardInterrupt
            return data[at]

    uninterrupted, curve = run(data)
    shutil.rmtree(options.checkpoint)
    with pytest.raises(KeyboardInterrupt):
        run(Stops())
    assert options.checkpoint.exists()
    again, same = run(data)
    assert np.array_equal(uninterrupted["w"], again["w"])
    assert same == curve


def test_a_fit_over_devices_equals_one_on_one(tmp_path, monkeypatch):
    data = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)

    def run(batch):
        options = FitOptions(5, batch, 0.1, seed=0, checkpoint=tmp_path / f"{batch}.state")
        loss = lambda module, batch, key: jnp.square(module["w"][None] - batch).mean()  # noqa: E731
        shutil.rmtree(options.checkpoint, ignore_errors=True)
        with jax.numpy_dtype_promotion("standard"):  # for optax
            return fit("toy", {"w": jnp.ones(3)}, loss, data, options)[0]["w"]

    spread = run(8)
    with pytest.raises(ConfigError, match="a batch of 6 rows does not divide over 8 devices"):
        run(6)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert relative(spread, run(8)) < 1e-6


def test_every_view_counts_alike_and_head_and_face_have_their_share():
    weights = loss_weights.weights(96, 0.6)
    np.testing.assert_allclose(weights.mean((1, 2)), 1, rtol=1e-6)
    pooled = weights.reshape(-1, 12, 8, 12, 8).mean((2, 4))
    np.testing.assert_allclose(loss_weights.weights(96, 0.6, 8), pooled, rtol=1e-5)
    np.testing.assert_array_equal(loss_weights.weights(96, 0.0), 1)
    views = [View(body, "Calm", "red", "white") for body in BODIES]
    for view, kind in zip(views, loss_weights.kind_indices(views), strict=True):
        left, top, right, bottom = pixel_box(FACE_BOX, body_kind(view.body), 96)
        face = weights[kind, top:bottom, left:right]
        assert face.sum() > 0.3 * 96**2
        assert face.min() == weights[kind].max()


def test_nobody_held_out_is_trained_on():
    assert not set(HELD) & set(TRAINED)
    assert len(HELD) > 50


def test_rows_show_people_side_by_side_and_tell_who_alone_is_there():
    rows = render_rows("small", 8, 32, 1, people=3)
    assert rows.pixels.shape == (8, 32, 96, 3)
    squares = rows.pixels.reshape(8, 32, 3, 32, 3).swapaxes(1, 2)
    equal = [bool((row == row[0]).all()) for row in squares]
    assert equal == rows.alike
    assert sum(rows.alike) == 2
    for row, identity, view in zip(squares, rows.identities, rows.views, strict=True):
        np.testing.assert_array_equal(row[0], picture(identity, view, 32))


def test_an_unknown_setting_is_refused(tmp_path, capsys):
    assert main(["train", str(tmp_path / "model"), "--set", "vae_step=3"]) == 2
    assert "vae_steps" in capsys.readouterr().err
