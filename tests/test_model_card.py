"""Model cards of exports, and their upload to the Hub, which a stub stands for."""

import json
import re
import tomllib
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import yaml
from huggingface_hub import errors

import train.export
from ic_jax.config import CONFIGS
from ic_jax.weights import loading, model_folder
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from train import lora
from train.commands import main
from train.model_card import Trained
from train.recipe import LoraConfig, recipe_of

STAGE = {"steps": 300, "batch": 8, "resolution": 96, "learning_rate": 2e-4}
PROMPT = "somebody's private prompt"


def recipe(folder, **values):
    places = {"model": str(SMALL_MODEL), "data": str(folder / "people"), "out": str(folder / "run")}
    return recipe_of(
        places
        | {"holdout": 0.1, "seed": 7, "stage1": STAGE, "reporting": {"preview_prompts": [PROMPT]}}
        | values
    )


@pytest.fixture
def run(tmp_path):
    """A RUN folder of the small model that has reported twice, and its data set's card."""
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "people").mkdir()
    shards = [{"file": "a", "records": 60, "bytes": 1}]
    counts = {"pictures": 60, "characters": 15, "in_pairs": 58}
    card = counts | {"shards": shards, "written": []}
    (tmp_path / "people" / "card.json").write_text(json.dumps(card))
    lines = [
        {"step": 100, "loss": 0.5, "reference effect": 0.01},
        {"step": 200, "loss": 0.25, "reference effect": 0.03},
        {"step": 300, "loss": 0.125},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 4')  # cut short by a kill
    (folder / "recipe.json").write_text(json.dumps(recipe(tmp_path).to_dict()))
    return folder


def model(folder, flux="flux-dev"):
    """A MODEL folder with the published configs, and no weights."""
    with model_folder.create(folder / "ic") as writer:
        writer.add_config("transformer", CONFIGS[flux].to_dict())
        writer.add_config("adapter", CONFIGS["instantcharacter"].to_dict())
    return ModelFolder.open(folder / "ic")


def read(text):
    """Metadata, recipe and prose of a card."""
    _, metadata, prose = text.split("---\n", 2)
    (toml,) = re.findall(r"```toml\n(.*?)```", prose, re.DOTALL)
    return yaml.safe_load(metadata), tomllib.loads(toml), " ".join(prose.split())


def test_a_card_tells_what_was_trained(run):
    trained = Trained(
        *(recipe(run.parent), run, ModelFolder.open(SMALL_MODEL), 250, run.parent / "first"),
        "the last weights",
    )
    text = trained.card()
    metadata, toml, prose = read(text)
    assert metadata["license"] == "apache-2.0"  # the small model's
    assert "base_model" not in metadata  # it is not on the Hub
    assert metadata["pipeline_tag"] == "text-to-image"
    assert {"instantcharacter", "flux"} <= set(metadata["tags"])
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.03
    for fact in (
        *("step 250 of 300, the last weights", "Seed 7; adamw", "Last loss: 0.2500"),
        *("effect: +0.0300", "60 pictures of 15 characters; 58", "| stage1 | 300 | 8 | 96 |"),
        *("python -m infer --model first --subject", "python -m convert to-torch first"),
    ):
        assert fact in prose
    assert toml["stage1"] == STAGE
    assert (toml["model"], toml["data"]) == ("small_model", "people")
    assert str(run.parent) not in text
    assert PROMPT not in text


def test_a_card_of_the_published_sizes_names_base_and_licences(run):
    base = model(run.parent)
    weights = "an average over 9 steps"
    args = (run, base, 300, run.parent / "first", weights)
    metadata, _, prose = read(Trained(recipe(run.parent), *args).card("me/first"))
    assert metadata["base_model"] == ["black-forest-labs/FLUX.1-dev", "tencent/InstantCharacter"]
    assert metadata["base_model_relation"] == "adapter"
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "flux-1-dev-non-commercial-license"
    assert metadata["license_link"].startswith("https://huggingface.co/black-forest-labs/")
    assert metadata["library_name"] == "ic_jax"
    assert "research and education use only" in prose
    assert "--model me/first" in prose
    metadata, _, prose = read(Trained(recipe(run.parent, adapter="instantcharacter"), *args).card())
    assert metadata["base_model"] == ["black-forest-labs/FLUX.1-dev"]
    assert "education" not in prose


def test_a_card_of_a_lora_has_its_trigger(run):
    style = recipe(run.parent, lora={"trigger": "ink drawing", "start": "/home/me/old.safetensors"})
    base = model(run.parent, "flux-schnell")
    trained = Trained(style, run, base, 300, run.parent / "ink.safetensors", "the last weights")
    metadata, toml, prose = read(trained.card("me/ink"))
    assert metadata["instance_prompt"] == "ink drawing"
    assert (metadata["library_name"], metadata["license"]) == ("diffusers", "apache-2.0")
    assert metadata["base_model"] == ["black-forest-labs/FLUX.1-schnell"]
    assert "lora" in metadata["tags"]
    assert 'pipe.load_lora_weights("me/ink", weight_name="ink.safetensors")' in prose
    assert 'pipe("ink drawing, a cat on a roof")' in prose
    assert '--lora me/ink/ink.safetensors --trigger "ink drawing"' in prose
    assert "models/loras" in prose
    assert toml["lora"] == {"trigger": "ink drawing", "start": "old.safetensors"}


@pytest.fixture
def api(monkeypatch):
    """A stub of the Hub's client that remembers what lay in the folder that was uploaded."""
    api = MagicMock(files={})
    api.create_repo.return_value = "https://hub/me/first"

    def upload(folder_path, **options):
        api.files = {
            file.name: file.read_bytes() for file in folder_path.iterdir() if file.is_file()
        }
        api.options = options

    api.upload_folder.side_effect = upload
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: api)
    return api


def refusal(status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return errors.HfHubHTTPError(f"{status} Client Error\nfor url", response=response)


def export(monkeypatch, params, run, out, *options):
    state = SimpleNamespace(params=params, ema_params=params)
    monkeypatch.setattr(train.export, "read_state", lambda *_, **__: (300, state))
    return main(["export", str(run), "--out", str(out), *options])


def test_an_adapter_is_uploaded_as_a_private_folder(run, api, capsys, monkeypatch):
    adapter = loading.load_component(SMALL_MODEL, "adapter", "float32")
    out = run.parent / "first"
    assert export(monkeypatch, adapter, run, out, "--push", "me/first") == 0
    assert api.create_repo.call_args.kwargs == {"private": True, "exist_ok": True}
    assert api.files.keys() == {"README.md", "manifest.json"}
    assert api.files["README.md"].decode() == (out / "README.md").read_text()
    assert "an average over 64 steps" in (out / "README.md").read_text()
    assert "adapter/*" in api.options["delete_patterns"]
    assert "https://hub/me/first: uploaded" in capsys.readouterr().out
    ModelFolder.open(out).verify()
    # The card does not stand in the way of --overwrite.
    options = ("--overwrite", "--no-ema", "--push", "me/first", "--public")
    assert export(monkeypatch, adapter, run, out, *options) == 0
    assert api.create_repo.call_args.kwargs["private"] is False
    assert "the last weights" in (out / "README.md").read_text()


def test_a_lora_is_uploaded_with_its_card(run, api, capsys, monkeypatch):
    flux = loading.abstract(
        "transformer", loading.read_config(ModelFolder.open(SMALL_MODEL), "transformer")
    )
    pairs = lora.initial(flux, LoraConfig(rank=1, targets=("attn.to_q",)), 0)
    style = recipe(run.parent, lora={"trigger": "ink"})
    (run / "recipe.json").write_text(json.dumps(style.to_dict()))
    out = run.parent / "ink.safetensors"
    assert export(monkeypatch, pairs, run, out, "--no-ema", "--push", "me/ink") == 0
    assert api.files["ink.safetensors"] == out.read_bytes()
    assert api.files["README.md"] == out.with_suffix(".md").read_bytes()
    assert api.options["delete_patterns"] is None
    api.upload_folder.side_effect = refusal(500)
    options = ("--no-ema", "--overwrite", "--push", "me/ink")
    assert export(monkeypatch, pairs, run, out, *options) == 74
    assert f"{out} is written, and `hf upload me/ink {out}`" in capsys.readouterr().err
    out.unlink()
    assert export(monkeypatch, pairs, run, out, "--no-ema") == 2
    assert "ink.md: exists; name another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refusal(401), "me/first: the Hub does not know you (401); log in with `hf auth login`"),
        (refusal(403), "me/first: you may not write there (403); name a repository of your own"),
        (refusal(500), "me/first: the Hugging Face Hub answered: 500 Client Error"),
        (errors.LocalTokenNotFoundError("no token"), "log in with `hf auth login`"),
        (errors.OfflineModeIsEnabled("offline"), "the Hugging Face Hub cannot be reached"),
        (RuntimeError("Connection reset\nby peer"), "the upload broke off (Connection reset)"),
    ],
    ids=str,
)
def test_a_refusal_is_one_line_and_comes_before_the_work(error, message, run, api, capsys):
    api.create_repo.side_effect = error
    out = run.parent / "first"
    assert main(["export", str(run), "--out", str(out), "--push", "me/first"]) == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--push", "first"], "first: is no Hub id; write org/name"), (["--public"], "give --push")],
)
def test_options_of_an_upload_are_checked(options, message, run, capsys):
    assert main(["export", str(run), "--out", str(run.parent / "x"), *options]) == 2
    assert message in capsys.readouterr().err
