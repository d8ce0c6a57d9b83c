"""Recipes: their tables, changes from the command line, and errors."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from ic_jax import auto_mesh
from ic_jax.config import ConfigError
from ic_jax.devices import CHIPS
from ic_jax.sharding import parse
from train.models import components_of
from train.optimizer import state_copies
from train.recipe import read_recipe, recipe_of

RECIPES = Path(__file__).parent.parent / "docs" / "recipes"

HEAD = 'model = "m"\ndata = "d"\nout = "o"\n'
FREE = "optimizer = 'schedule-free'\n[stage1]\nsteps = 1\n"


def read(tmp_path, text, *changes):
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    return read_recipe(file, changes)


def test_stages_follow_in_the_order_of_their_numbers(tmp_path):
    tables = "".join(f"[stage{n}]\nsteps = {n}\n" for n in (10, 2, 1))
    recipe = read(tmp_path, HEAD + tables)
    assert list(recipe.stages) == ["stage1", "stage2", "stage10"]
    assert recipe.first_steps() == {"stage1": 0, "stage2": 1, "stage10": 3}
    assert recipe.total_steps == 13


def test_changes_from_the_command_line(tmp_path):
    changes = ("stage1.steps=2000", "stage1.timesteps=uniform", "seed=7", "saving.keep=1")
    recipe = read(tmp_path, HEAD + "[stage1]\nsteps = 1\n", *changes)
    stage = recipe.stages["stage1"]
    assert (stage.steps, stage.timesteps, recipe.seed, recipe.saving.keep) == (
        2000,
        "uniform",
        7,
        1,
    )


def test_a_recipe_survives_json(tmp_path):
    text = HEAD + 'adapter = "instantcharacter"\n[stage1]\nsteps = 3\npaired = 1\n'
    recipe = read(tmp_path, text + '[reporting]\npreview_prompts = ["a", "b"]\n')
    assert recipe_of(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = ", "recipe.toml: not TOML"),
        (HEAD, "has no stage; write a table"),
        (HEAD + "[stage1]\n", "stage1.steps is missing"),
        ("data = 'd'\nout = 'o'\n[stage1]\nsteps = 1", 'model is missing; write model = "FOLDER"'),
        (HEAD + "sede = 1\n[stage1]\nsteps = 1", "unknown key sede; did you mean seed?"),
        (HEAD + "seed = 'x'\n[stage1]\nsteps = 1", "seed is 'x'; it must be of type int"),
        (HEAD + "[stage1]\nsteps = 1\nlerning_rate = 1", "did you mean learning_rate?"),
        (HEAD + "[stage1]\nsteps = 1.5", "stage1.steps is 1.5; it must be of type int"),
        (HEAD + "[stage1]\nsteps = 0", "stage1.steps is 0; it must be at least 1"),
        (HEAD + "[stage1]\nsteps = 1\npaired = 2", "stage1.paired is 2.0; it must be from 0 to 1"),
        (HEAD + "[stage1]\nsteps = 1\nresolution = 100", "must be a multiple of 16"),
        (HEAD + "[stage1]\nsteps = 1\naccumulate = 3", "must be a divisor of batch 32"),
        (HEAD + "[stage1]\nsteps = 1\ntimesteps = 'cosine'", "must be logit-normal or uniform"),
        (HEAD + "[stage1]\nsteps = 1\nremat = true", "remat is True; it must be none or blocks"),
        (HEAD + "[lora]\nrank = 0\n[stage1]\nsteps = 1", "lora.rank is 0; it must be at least 1"),
        (HEAD + "[lora]\ntargets = 'x'\n[stage1]\nsteps = 1", "must be a list of texts"),
        (HEAD + "[lora]\n[stage1]\nsteps = 1\npaired = 1", "stage1.paired is 1.0; .lora. sees no"),
        (HEAD + "adapter = 'x'\n[lora]\n[stage1]\nsteps = 1", "has both adapter and .lora."),
        (HEAD + "[stag1]\nsteps = 1", "unknown table .stag1.; did you mean stage1?"),
        (HEAD + "[saving]\nevry = 1\n[stage1]\nsteps = 1", "saving.evry; did you mean every?"),
        (HEAD + "[saving]\nkeep = 0\n[stage1]\nsteps = 1", "saving.keep is 0; it must be at l"),
        (HEAD + "[reporting]\nevery = 0\n[stage1]\nsteps = 1", "reporting.every is 0"),
        (HEAD + "dtype = 'float15'\n[stage1]\nsteps = 1", "dtype is 'float15'; it must be bfl"),
        (HEAD + "base = 'whole'\n[stage1]\nsteps = 1", "'whole' is now called 'replicated'"),
        (
            HEAD + "optimizer = 'adamw8'\n[stage1]\nsteps = 1",
            "must be adamw or adamw-bf",
        ),
        (HEAD + "[stage1]\nsteps = 1\nschedule = 'cosin'", "must be constant or linear or cosine"),
        (HEAD + "[stage1]\nsteps = 1\nfloor = 2", "stage1.floor is 2.0; it must be from 0 to 1"),
        (HEAD + "optimizer = 'prodigy'\n[stage1]\nsteps = 1", "rate is 0.0001; .* write 1.0"),
        (HEAD + FREE, "stage1.ema is 0.999; optimizer 'schedule-free' averages"),
        (HEAD + FREE + "ema = 0\nschedule = 'wsd'", "stage1.schedule is 'wsd'; .* leave it out"),
        (HEAD + FREE + "ema = 0\nb1 = 0", "stage1.b1 is 0.0; .* the same in all stages, above 0"),
        (
            HEAD + FREE + "ema = 0\n[stage2]\nsteps = 1\nema = 0\nb1 = 0.8",
            "stage2.b1 is 0.8; .* the same in all stages",
        ),
        (HEAD + "holdout = 2\n[stage1]\nsteps = 1", "holdout is 2.0; it must be from 0"),
        (HEAD + "text_length = 0\n[stage1]\nsteps = 1", "text_length is 0; it must be at le"),
        (HEAD + "[stage1]\nsteps = 1\nclip = 0", "stage1.clip is 0.0; it must be above 0"),
    ],
)
def test_a_wrong_recipe_is_told_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        read(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_a_wrong_change_is_told(tmp_path):
    with pytest.raises(ConfigError, match="--set steps: write KEY=VALUE"):
        read(tmp_path, HEAD + "[stage1]\nsteps = 1", "steps")
    with pytest.raises(ConfigError, match="adapter is 'instantcharacter', which has no dim"):
        read(tmp_path, HEAD + "adapter = 'instantcharacter'\n[stage1]\nsteps = 1", "adapter.dim=8")


def test_a_lora_is_trained_instead_of_an_adapter(tmp_path):
    recipe = read(tmp_path, HEAD + "[lora]\nrank = 8\ntrigger = 'ink'\n[stage1]\nsteps = 1\n")
    assert (recipe.lora.scale, recipe.holdout) == (1.0, 0.0)
    assert recipe.prompted("a cat") == "ink, a cat"
    assert recipe_of(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe_of(recipe.to_dict()) == recipe
    recipe = read(tmp_path, HEAD + "[stage1]\nsteps = 1\n[lora]\n", "lora.alpha=4", "holdout=0.5")
    assert (recipe.lora.scale, recipe.holdout) == (0.25, 0.5)


MACHINES = {  # devices of docs/recipes, and their number
    "h100": ("NVIDIA H100", 1),
    "h200": ("NVIDIA H200", 1),
    "8xh100": ("NVIDIA H100", 8),
    "v5e-16": ("TPU v5 lite", 16),
}


def test_there_is_a_machine_for_every_recipe():
    assert {file.stem for file in RECIPES.iterdir()} == MACHINES.keys()


@pytest.fixture(scope="module")
def published():
    return auto_mesh.published(jnp.bfloat16)


@pytest.mark.parametrize("name", MACHINES)
def test_the_recipes_for_machines(name, published):
    """They are read, and name the mesh that the devices' memory asks for."""
    recipe, (chip, count) = read_recipe(RECIPES / f"{name}.toml"), MACHINES[name]
    base = {k: published[k] for k in components_of(recipe, previews=False) & published.keys()}
    rows = [stage.batch // stage.accumulate for stage in recipe.stages.values()]
    sizes = auto_mesh.training_sizes(
        *(base, published["adapter"], rows, count, CHIPS[chip].memory, state_copies(recipe))
    )
    expected = "data=1" if recipe.mesh == "auto" else recipe.mesh
    assert sizes == parse(expected)
    assert {stage.batch for stage in recipe.stages.values()} == {32}


def test_adamw_does_not_fit_one_h100(published):
    base = {k: published[k] for k in ("transformer", "siglip", "dinov2")}
    with pytest.raises(ValueError, match="2 would, as fsdp=2"):
        auto_mesh.training_sizes(base, published["adapter"], [1], 1, CHIPS["NVIDIA H100"].memory)
