"""`python -m train new`: recipes with every key, sized for data, model and devices, that run."""

import re
import tomllib
from dataclasses import fields

import jax.numpy as jnp
import pytest

from ic_jax import auto_mesh
from ic_jax.config import AdapterConfig
from ic_jax.weights.model_folder import SMALL_MODEL
from tests.toy import write_data, write_model
from train.commands import main
from train.new.memory_fit import Devices, fitted
from train.new.recipe_text import changed_text, field_comments, recipe_text
from train.recipe import TABLES, LoraConfig, Recipe, Reporting, Saving, Stage, recipe_of
from train.recipe_warnings import recipe_warnings

CLASSES = {"saving": Saving, "reporting": Reporting, "stage1": Stage}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of discs and a toy model, without an adapter and with one."""
    folder = tmp_path_factory.mktemp("new")
    write_model(folder / "model")
    write_data(folder)
    return folder


def written(capsys, *arguments):
    assert main(["new", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 100 for line in out.splitlines() if line.startswith("#"))
    return tomllib.loads(out), out


def names(cls, *without):
    return {f.name for f in fields(cls)} - set(without)


def without_comment(text):
    """Keys that no comment explains, on their line or above it."""
    explained = re.sub(r"^(# .+\n)+\w+ = .*$|^\w+ = .*  # .+$", "", text, flags=re.MULTILINE)
    return set(re.findall(r"^(\w+) = ", explained, re.MULTILINE))


def test_every_default_has_a_comment_with_its_source():
    for cls in (Recipe, LoraConfig, *CLASSES.values()):
        comments = field_comments(cls)
        for field in fields(cls):
            if field.name not in (*TABLES, "steps", "model", "data", "out"):
                assert re.search(r"\[.+\]", comments[field.name]), field.name


@pytest.mark.parametrize("options", [[], ["--new-adapter"], ["--lora"]], ids=str)
def test_every_key_is_there_and_explained(options, folder, capsys):
    values, text = written(capsys, folder / "data", *options)
    classes = CLASSES | ({"lora": LoraConfig} if "--lora" in options else {})
    if "--new-adapter" in options:
        classes["adapter"] = AdapterConfig
    assert values.keys() >= names(Recipe, *TABLES)
    for table, cls in classes.items():
        assert values[table].keys() == names(cls)
    assert without_comment(text) <= names(AdapterConfig)
    assert recipe_warnings(recipe_of(values)) == []
    assert "[small model] measured on" in " ".join(text.split("\n# "))


def test_it_reads_back_to_the_same_recipe():
    values = {
        "model": 'a "b" \\c',
        "data": "ü/\u202f",
        "out": "o\x7f",
        "lora": {"targets": ["to_q"], "trigger": "ink\n", "alpha": 0.5},
        "reporting": {"preview_prompts": ["été", "# no comment"], "wandb": "p"},
        "stage1": {"steps": 3, "learning_rate": 1e-7, "shifted": False},
        "stage2": {"steps": 1, "remat": "dots"},
        "stage10": {"steps": 2},
    }
    recipe = recipe_of(values)
    for text in (recipe_text(recipe, {"stage2": "why"}, "head\n"), changed_text(recipe)):
        assert recipe_of(tomllib.loads(text)) == recipe


def test_it_is_sized_for_the_data_and_the_model(folder, capsys):
    values, text = written(capsys, folder / "data")
    held_out = 2  # of 12 characters
    assert f"{held_out} of 12 characters" in text
    assert values["model"].endswith("small_model")
    assert (values["adapter"], values["text_length"]) == ("", 36)
    assert values["stage1"]["resolution"] == 32  # the pictures'
    assert values["stage2"]["paired"] == 1
    assert values["stage1"]["learning_rate"] == 3e-4
    assert values["stage1"]["focus"] == 0.5
    assert "caption" not in values["reporting"]["preview_prompts"][0]
    values, _ = written(capsys, folder / "data", "--model", folder / "model", "--new-adapter")
    assert values["adapter"]["inner_dim"] == 32  # two encoders of 16
    values, _ = written(capsys, folder / "data", "--lora")
    assert (values["holdout"], "stage2" in values) == (0, False)


def test_a_source_is_to_be_prepared_first(folder, capsys):
    assert main(["new", str(folder / "source")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert f"python -m train prepare {folder / 'source'} --out data/source --resolution 128" in line


def test_no_file_is_overwritten(folder, tmp_path, capsys):
    file = tmp_path / "recipes" / "first.toml"
    assert main(["new", str(folder / "data"), "--out", str(file)]) == 0
    assert f"python -m train {file}" in capsys.readouterr().out
    before = file.read_text()
    assert main(["new", str(folder / "data"), "--lora", "--out", str(file)]) == 2
    assert "exists; name another file" in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("devices", "optimizer", "cached", "accumulate"),
    [  # as in docs/recipes, which were compiled
        (Devices("NVIDIA H100", 1, 79e9), "adafactor", True, 32),
        (Devices("NVIDIA H200", 1, 149.2e9), "adamw", False, 1),
        (Devices("NVIDIA H100", 8, 79e9), "adamw", False, 1),
        (Devices("TPU v5 lite", 16, 16.9e9), "adamw", False, 1),
    ],
    ids=str,
)
def test_it_fits_the_published_model_to_devices(devices, optimizer, cached, accumulate):
    values = dict.fromkeys(("model", "data", "out"), "d")
    values |= {"adapter": "instantcharacter", "stage1": {"steps": 1}}
    fit = fitted(recipe_of(values), auto_mesh.published(jnp.bfloat16), devices)
    assert fit.fits
    assert fit.needed <= devices.memory
    assert (fit.recipe.optimizer, bool(fit.recipe.cache)) == (optimizer, cached)
    assert fit.recipe.stages["stage1"].accumulate == accumulate


def test_what_cannot_fit_is_said(folder):
    values = dict.fromkeys(("model", "data", "out"), "d")
    values |= {"adapter": "instantcharacter", "stage1": {"steps": 1, "batch": 1}}
    fit = fitted(
        recipe_of(values), auto_mesh.published(jnp.bfloat16), Devices("CPU", 1, 50e9, is_cpu=True)
    )
    assert not fit.fits
    assert fit.recipe.stages["stage1"].ema == 0


# Each compiles training steps. Rare: other tests train LoRAs, by recipes with the same keys.
@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    "options",
    [pytest.param([], marks=pytest.mark.slow), pytest.param(["--lora"], marks=pytest.mark.rare)],
    ids=str,
)
def test_it_trains_as_it_is(options, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(folder / "model"), *options]
    assert main(["new", str(folder / "data"), *model, "--out", "first.toml"]) == 0
    fewer = ["stage1.steps=2", "stage2.steps=2", "stage1.batch=2", "stage2.batch=2"]
    if options:
        fewer = [change for change in fewer if "stage2" not in change]
    changes = [*fewer, "reporting.preview_every=0", "text_length=16"]
    assert main(["run", "first.toml", *(x for change in changes for x in ("--set", change))]) == 0
    assert (tmp_path / "runs" / "first" / "recipe.json").is_file()


def test_the_small_model_is_the_default(folder, capsys, monkeypatch):
    monkeypatch.chdir(SMALL_MODEL.parent.parent)
    values, _ = written(capsys, folder / "data")
    assert values["model"] == "ic_jax/small_model"
