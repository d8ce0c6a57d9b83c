"""The public face: names, examples, folders and the Hub, components and LoRAs of the pipeline."""

import doctest
import pydoc
import re
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest
from huggingface_hub import constants, errors

import ic_jax
from ic_jax import InstantCharacterPipeline, WeightsError, sampler
from ic_jax.models.target import compiling_for
from ic_jax.models.unstacked import UnstackedBlocks
from ic_jax.weights import hub, loading
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from ic_jax.weights.model_source import open_model
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent
STYLE = TINY / "style_lora.safetensors"


def parameters(pipe):
    """Every parameter's value, by component and path."""
    modules = {k: v for k, v in pipe.components.items() if hasattr(v, "config")}
    return {
        f"{name}.{path}": np.asarray(variable[...])
        for name, module in modules.items()
        for path, variable in loading.parameters(module).items()
    }


def expect_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# Names


def test_help_lists_every_public_name_and_no_other():
    table = ic_jax.__doc__.split("\n\n")[1]
    names = re.findall(r"\w+", re.sub(r"^- \w+:", "", table, flags=re.M))
    assert sorted(names) == sorted(set(ic_jax.__all__) - {"__version__"})
    for name in ic_jax.__all__:
        assert getattr(ic_jax, name).__doc__
    assert table in pydoc.plain(pydoc.render_doc(ic_jax)).replace("\n    ", "\n")


@pytest.mark.parametrize("documented", [InstantCharacterPipeline, sampler.sample])
def test_examples_in_docstrings_run(documented, monkeypatch):
    monkeypatch.chdir(ROOT)
    (example,) = doctest.DocTestFinder(recurse=False).find(documented)
    assert example.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


# Components


def test_components_are_where_users_of_diffusers_look_for_them(pipe, tiny_model):
    assert pipe.transformer is pipe.components["transformer"]
    expected = "Flux Adapter Vae ClipText T5Encoder SiglipVision Dinov2 TextTokenizer TextTokenizer"
    classes = [type(part).__name__ for part in pipe.components.values()]
    assert classes == [*expected.split(), "SchedulerConfig"]
    assert (pipe.dtype, pipe.mesh, pipe.device) == (np.float32, None, jax.devices()[0])
    text = repr(pipe)
    for part in (
        "transformer: Flux, 545,680 parameters",
        "dtype: float32",
        "device: cpu",
        "active LoRAs: None",
    ):
        assert part in text
    spread = InstantCharacterPipeline.from_pretrained(
        tiny_model, mesh="tensor=2", offload_encoders=True, verify=False
    )
    assert spread.text_encoder_2 is None
    for part in ("text_encoder_2: None", "dtype: bfloat16", "mesh tensor=2 of 2 x cpu"):
        assert part in repr(spread)


# From a folder or the Hub


def cached(cache, repo_id, files, commit="0" * 40):
    """Lay out a repository in the Hub library's cache as a download leaves it."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    for name, source in files.items():
        blob = repo / "blobs" / name.replace("/", "-")
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, blob)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)


def test_a_converted_model_in_the_hubs_cache_loads_offline(pipe, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    files = {str(p.relative_to(tiny_model)): p for p in tiny_model.rglob("*") if p.is_file()}
    cached(tmp_path, "org/tiny", files)
    for revision in (None, "main", "0" * 40):
        folder = hub.fetch_model("org/tiny", revision)
        assert ModelFolder.open(folder).components == ModelFolder.open(tiny_model).components
    for name in ("org/tiny@main", tmp_path / "models--org--tiny"):
        assert open_model(name).path.name == "0" * 40
    with pytest.raises(ValueError, match="names a revision, and so does 'main'; give one"):
        open_model("org/tiny@main", "main")
    loaded = InstantCharacterPipeline.from_pretrained("org/tiny", "float32")
    expect_equal(parameters(loaded), parameters(pipe))
    with pytest.raises(FileNotFoundError, match=r"^org/tiny: .*cannot be reached"):
        InstantCharacterPipeline.from_pretrained("org/tiny", revision="other")


def test_published_weights_are_answered_with_the_command_that_converts_them(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    index = TINY / "flux" / "model_index.json"
    cached(tmp_path, "black-forest-labs/FLUX.1-dev", {index.name: index})
    cached(tmp_path, "Tencent/InstantCharacter", {"instantcharacter_ip-adapter.bin": index})
    for name, option in (
        ("black-forest-labs/FLUX.1-dev", "--flux"),
        ("Tencent/InstantCharacter", "--adapter"),
        (str(TINY / "flux"), "--flux"),
    ):
        with pytest.raises(WeightsError) as raised:
            InstantCharacterPipeline.from_pretrained(name)
        assert "from a checkout of ic_jax: python -m convert from-torch --" in str(raised.value)
        assert f" {option} {name} " in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, "is gated: accept its licence"),
        (errors.RepositoryNotFoundError, "no such path here and no such repository"),
        (errors.RevisionNotFoundError, "has no revision v2"),
        (errors.LocalEntryNotFoundError, "the Hugging Face Hub cannot be reached"),
        (RuntimeError, "the download broke off"),
    ],
)
def test_errors_of_the_hub_are_one_line(error, message, monkeypatch):
    def download(*_, **__):
        of_http = issubclass(error, errors.HfHubHTTPError)
        raise error("no\nno", **({"response": MagicMock()} if of_http else {}))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=message) as raised:
        InstantCharacterPipeline.from_pretrained("org/name", revision="v2")
    assert "\n" not in str(raised.value)


def test_neither_a_folder_nor_a_hub_id():
    for name in ("nowhere", "./no/where", "/no/where"):
        with pytest.raises(FileNotFoundError, match="no such folder, and not a Hub id"):
            InstantCharacterPipeline.from_pretrained(name)
    with pytest.raises(ValueError, match="a local folder has no revision"):
        InstantCharacterPipeline.from_pretrained(SMALL_MODEL, revision="v2")


# To a folder or the Hub


def test_a_saved_model_is_the_same_bit_for_bit(pipe, tiny_model, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    saved, source = ModelFolder.open(tmp_path / "saved"), ModelFolder.open(tiny_model)
    names = {component: set(files) for component, files in source.components.items()}
    assert {c: set(files) for c, files in saved.components.items()} == names | {
        "sampling": {"config.json"}
    }
    loaded = InstantCharacterPipeline.from_pretrained(tmp_path / "saved", "float32")
    expect_equal(parameters(loaded), parameters(pipe))
    assert (loaded.scheduler, loaded.sampling) == (pipe.scheduler, pipe.sampling)
    with pytest.raises(FileExistsError):
        pipe.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # on a GPU blocks are unstacked
def test_a_model_on_a_mesh_with_loras_and_offloaded_encoders_is_saved_without_loras(
    pipe, tiny_model, tmp_path, platform
):
    with compiling_for(platform):
        spread = InstantCharacterPipeline.from_pretrained(
            tiny_model, "float32", mesh="tensor=2", offload_encoders=True
        )
    assert isinstance(spread.transformer.transformer_blocks, UnstackedBlocks) == (platform == "gpu")
    spread.load_lora_weights(STYLE)
    with pytest.warns(UserWarning, match="without its LoRAs"):
        spread.save_pretrained(tmp_path)
    assert spread.get_active_adapters() == ["default_0"]
    loaded = InstantCharacterPipeline.from_pretrained(tmp_path, "float32")
    expect_equal(parameters(loaded), parameters(pipe))


def test_a_save_that_fails_leaves_nothing(pipe, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(loading, "write_component", fail)
    with pytest.raises(OSError, match="disk full"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not any(tmp_path.iterdir())


def test_push_to_hub_uploads_a_model_folder(pipe, monkeypatch):
    api, uploaded = MagicMock(), {}
    api.create_repo.return_value.repo_id = "org/mine"

    def upload(folder_path, **options):
        uploaded.update(options, components=ModelFolder.open(folder_path).components)

    api.upload_folder.side_effect = upload
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: api)
    pipe.push_to_hub("org/mine", private=True, commit_message="first")
    api.create_repo.assert_called_once_with("org/mine", private=True, exist_ok=True)
    assert (uploaded["repo_id"], uploaded["commit_message"]) == ("org/mine", "first")
    assert "transformer" in uploaded["components"]
    assert "transformer/*" in uploaded["delete_patterns"]


# LoRAs, as diffusers names the methods


def arrays(pipe):
    """Every array of the transformer, and of the LoRAs beside its weights."""
    return jax.tree.leaves(jax.device_get(pipe.transformer))


def test_loras_are_weighted_chosen_and_removed(pipe, tmp_path):
    base, weights = arrays(pipe), parameters(pipe)
    shutil.copy(STYLE, tmp_path / "pytorch_lora_weights.safetensors")
    try:
        pipe.load_lora_weights(STYLE, "style", weight=0.5)
        alone = arrays(pipe)
        expect_equal(parameters(pipe), weights)  # the base is never written
        pipe.load_lora_weights(tmp_path, trigger="ink")
        assert pipe.get_active_adapters() == ["style", "default_0"]
        assert "active LoRAs: style at 0.5, default_0 at 1" in repr(pipe)
        pipe.set_adapters(["style", "default_0"], [0.25, 2])
        pipe.set_adapters("style")  # at the weight that it was loaded with
        jax.tree.map(np.testing.assert_array_equal, arrays(pipe), alone)
        pipe.set_adapters([])
        assert pipe.get_list_adapters() == {"transformer": ["style", "default_0"]}
        jax.tree.map(np.testing.assert_array_equal, arrays(pipe), base)
        pipe.set_adapters(["style", "default_0"], 0.5)
        pipe.delete_adapters("default_0")
        jax.tree.map(np.testing.assert_array_equal, arrays(pipe), alone)
        pipe.fuse_lora()
        assert any((parameters(pipe)[k] != v).any() for k, v in weights.items())
        pipe.unfuse_lora()
        jax.tree.map(np.testing.assert_array_equal, arrays(pipe), alone)
        with pytest.raises(ValueError, match="2 weights for 1 LoRAs"):
            pipe.set_adapters("style", [1.0, 2.0])
        for refused in (pipe.set_adapters, pipe.delete_adapters):
            with pytest.raises(ValueError, match="no LoRA is called 'ink'; loaded are: style"):
                refused("ink")
    finally:
        pipe.unload_lora_weights()
    jax.tree.map(np.testing.assert_array_equal, arrays(pipe), base)
    assert pipe.get_active_adapters() == []
