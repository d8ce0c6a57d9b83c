"""Cached embeddings and latents: the same loss as without, and refused where they do not fit."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ic_jax.weights.model_folder import ModelFolder
from tests.toy import write_data, write_model
from train.commands import main
from train.data.dataset import Dataset
from train.data.encoded_store import Embeddings, EncodedRows
from train.data.loader import SkipCounter
from train.data.pictures import CENTRED
from train.encode import encode, row_keys
from train.encoded_cache import Cache
from train.recipe import read_recipe
from train.setup import setup
from train.step_inputs import StepInputs

RECIPE = """
model = "{folder}/model"
data = "{folder}/data"
out = "{folder}/{run}"
cache = "{cache}"
dtype = "float32"
text_length = 16
mesh = "data=2"
{kind}
[saving]
every = 2
[reporting]
every = 2
effect_every = 4
effect_batches = 1
preview_every = {preview}
preview_prompts = ["a disc"]
preview_steps = 2
preview_references = 1
[stage1]
steps = 4
batch = 8
resolution = 32
text_dropout = 0.5
focus = 0.5
"""
ADAPTER, LORA = "holdout = 0.6", "[lora]\nrank = 2"

pytestmark = pytest.mark.usefixtures("optax_promotes")


def train(*arguments):
    return main([*arguments, "--no-compile-cache"])


class World:
    def __init__(self, folder):
        self.folder = folder
        write_model(folder / "model")
        write_data(folder, characters=10)

    def file(self, run, kind=ADAPTER, *, cached=True, preview=0):
        file = self.folder / f"{run}.toml"
        cache = self.folder / "cache" if cached else ""
        file.write_text(
            RECIPE.format(folder=self.folder, run=run, cache=cache, kind=kind, preview=preview)
        )
        return str(file)

    def run(self, *arguments, **options):
        """A run that is ready to train."""
        return setup(read_recipe(Path(self.file(*arguments, **options))))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("cached"))
    for kind in (ADAPTER, LORA):
        assert main(["cache", world.file("filled", kind)]) == 0
    return world


ENCODE = jax.jit(encode, static_argnums=(5, 6, 7))


def first_examples(run, dropout):
    """The first batch, encoded; its targets are cut at the middle."""
    inputs, stage = StepInputs(run), run.recipe.stages["stage1"]
    rows = inputs.local_rows(stage.batch)
    host = next(run.training_batches("stage1", 0, rows, SkipCounter()))
    scalars = inputs.scalars("stage1", 0, host).replace(text_dropout=jnp.float32(dropout))
    batch = inputs.batch(host)
    keys = row_keys(jnp.int32(0), jnp.int32(0), batch)
    arguments = (inputs.frozen, batch, keys, inputs.empty, scalars, run.models.adapter)
    return ENCODE(*arguments, "logit-normal", jnp.dtype("float32"))


@pytest.fixture(scope="module", params=[ADAPTER, LORA])
def runs(world, request):
    """A cached run, and the same without a cache."""
    return [world.run(f"examples{c}", request.param, cached=c) for c in (True, False)]


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_a_cached_batch_is_encoded_to_the_same(runs, dropout, monkeypatch):
    monkeypatch.setattr("train.setup.Augment", lambda: CENTRED)
    cached, plain = (first_examples(run, dropout) for run in runs)
    # Encoders that are not run are not loaded.
    assert runs[0].models.model.t5 is runs[0].models.model.clip is runs[0].models.model.vae is None
    assert (cached.features is None) == (runs[0].recipe.lora is not None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6), cached, plain)


def losses(world, run):
    lines = [json.loads(x) for x in (world.folder / run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], lines


# Two runs of each kind, which compile a step each. Rare: a LoRA's cache is a part of an adapter's,
# and batches from both are compared above.
@pytest.mark.parametrize(
    "kind",
    [pytest.param(ADAPTER, marks=pytest.mark.slow), pytest.param(LORA, marks=pytest.mark.rare)],
)
def test_whole_runs_have_equal_losses(world, kind, monkeypatch):
    monkeypatch.setattr("train.setup.Augment", lambda: CENTRED)
    names = [f"{kind[1:5]}{cached}" for cached in (True, False)]
    preview = 4 if kind == LORA else 0
    for name, cached in zip(names, (True, False), strict=True):
        assert train(world.file(name, kind, cached=cached, preview=preview)) == 0
    (ours, lines), (theirs, plain) = (losses(world, name) for name in names)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    effects = [
        [x["reference effect"] for x in y if "reference effect" in x] for y in (lines, plain)
    ]
    np.testing.assert_allclose(*effects, atol=1e-6)
    assert len(effects[0]) == (kind == ADAPTER)
    if preview:
        shown = [Image.open(world.folder / n / "previews/0000004.png") for n in names]
        ours, theirs = (np.asarray(picture, np.int16) for picture in shown)
        assert abs(ours - theirs).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text_length=12", "captions: was made with another text_length"),
        ("dtype=bfloat16", "captions: was made with another dtype"),
        ('reporting.preview_prompts=["x"]', "prompts: was made with another preview_prompts"),
        ("holdout=0.4", "is not cached, or only in part"),
        ("cache=elsewhere", "elsewhere/captions: is not cached, or only in part"),
        ("stage1.resolution=64", "latents-64-"),
    ],
)
def test_another_recipe_is_refused_in_one_line(world, change, message, capsys):
    assert train(world.file("refused"), "--set", change) == 4
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert "run `python -m train cache`" in line


def test_what_was_made_with_other_settings_is_not_replaced_unasked(world, capsys):
    before = {p: p.stat().st_mtime_ns for p in (world.folder / "cache").rglob("*")}
    assert main(["cache", world.file("refused"), "--set", "text_length=12"]) == 4
    assert (
        "captions: was made with another text_length; give --overwrite" in capsys.readouterr().err
    )
    assert before == {p: p.stat().st_mtime_ns for p in (world.folder / "cache").rglob("*")}


def test_other_data_and_encoders_are_refused(world, tmp_path, capsys):
    write_data(tmp_path, characters=11)
    assert train(world.file("refused"), "--set", f"data={tmp_path}/data") == 4
    assert "captions: was made with another data set; run" in capsys.readouterr().err
    shutil.copytree(world.folder / "model", tmp_path / "model")
    manifest = tmp_path / "model" / "manifest.json"
    digest = json.loads(manifest.read_text())["components"]["vae"]["model.safetensors"]["sha256"]
    manifest.write_text(manifest.read_text().replace(digest, "0" * 64))
    assert train(world.file("refused"), "--set", f"model={tmp_path}/model") == 4
    assert "was made with another vae; run" in capsys.readouterr().err


def test_a_cache_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.encoded_store.ROWS", 4)
    records = np.array([1, 3, 5, 8, 9, 11])
    encoded = []

    def rows(facts):
        return EncodedRows(tmp_path / "part", Embeddings, records, facts)

    def make(chosen, stop=None):
        encoded.append(chosen.tolist())
        if stop is not None and stop in chosen:
            raise KeyboardInterrupt
        return {n: Embeddings(np.full((2, 3), n, np.float32), np.ones(2)) for n in chosen if n != 5}

    with pytest.raises(KeyboardInterrupt):
        rows({"a": 1}).write(lambda chosen: make(chosen, stop=11))
    with pytest.raises(ValueError, match="is not cached, or only in part"):
        rows({"a": 1}).check()
    rows({"a": 1}).write(make)
    assert encoded == [[1, 3, 5, 8], [9, 11], [9, 11]]
    complete = rows({"a": 1})
    complete.check()
    assert (complete.read(11).t5 == 11).all()
    with pytest.raises(ValueError, match="record 5 could not be read when cached"):
        complete.read(5)
    with pytest.raises(ValueError, match="was made with another a; run"):
        rows({"a": 2}).check()
    rows({"a": 2}).write(make)
    assert encoded[3:] == [[1, 3, 5, 8], [9, 11]]
    shard = tmp_path / "part" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is missing or cut off"):
        rows({"a": 2}).check()


def test_filling_again_does_nothing_and_shares(world, capsys):
    before = {p: os.stat(p).st_mtime_ns for p in (world.folder / "cache").rglob("*.safetensors")}
    assert main(["cache", world.file("again")]) == 0
    after = {p: os.stat(p).st_mtime_ns for p in (world.folder / "cache").rglob("*.safetensors")}
    assert before == after
    recipe = read_recipe(world.folder / "again.toml")
    cache = Cache(recipe, ModelFolder.open(recipe.model), Dataset(recipe.data))
    assert cache.empty.t5.shape == (16, 16)
    # The adapter's training and measuring, and the LoRA's training on all characters.
    assert len(list((world.folder / "cache").glob("latents-32-*"))) == 3


def test_verify(world, tmp_path, capsys):
    assert main(["verify", str(world.folder / "data")]) == 0
    assert "11 files" in capsys.readouterr().out
    assert main(["verify", str(world.folder / "cache")]) == 0
    assert "5 files, 0.00 GB, all as they were written" in capsys.readouterr().out
    for name in ("data", "cache"):
        copy = tmp_path / name
        shutil.copytree(world.folder / name, copy)
        shard = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        assert main(["verify", str(copy)]) == 4
        err = capsys.readouterr().err
        assert f"files differ from their checksum: {shard.name};" in err
        shard.unlink()
        assert main(["verify", str(copy)]) == 4
        assert f"{shard.name} (missing)" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 4
    assert "is not a data set" in capsys.readouterr().err
