"""Published weights to a MODEL folder and back, on disk, for every published layout."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from diffusers import AutoencoderKL, FluxTransformer2DModel
from huggingface_hub.utils import filter_repo_objects

from convert.configs import from_published, to_published
from convert.published import PUBLISHED
from ic_jax.weights import loading
from ic_jax.weights.model_folder import ModelFolder
from ic_jax.weights.safetensors_io import Spec, read_tensors, write_tensors
from tests.conftest import ADAPTER, TINY, convert, from_torch

FOLDERS = {
    "flux/transformer": "diffusion_pytorch_model",
    "flux/vae": "diffusion_pytorch_model",
    "flux/text_encoder": "model",
    "flux/text_encoder_2": "model",
    "siglip": "model",
    "dinov2": "model",
}

TOWERS = ("siglip", "dinov2")


def raw(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every published tensor of a layout on disk, read by the published libraries."""
    actual = {
        name: safetensors.torch.load_file(folder / name / f"{stem}.safetensors")
        for name, stem in FOLDERS.items()
    }
    for group, tensors in torch.load(folder / f"{ADAPTER}.bin", weights_only=True).items():
        actual[f"adapter {group}"] = dict(tensors)
    return actual


def read_json(path):
    return json.loads(path.read_text())


def assert_bit_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for part, tensors in expected.items():
        assert actual[part].keys() == tensors.keys(), part
        for name, tensor in tensors.items():
            other = actual[part][name]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), (part, name)
            assert torch.equal(other, tensor), (part, name)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "torch"
    convert("to-torch", tiny_model, "--out", out)
    return out


def test_every_tensor_comes_back_bit_equal(exported):
    assert_bit_equal(raw(exported), raw(TINY))


def test_a_file_of_another_type_comes_back_in_it(tmp_path):
    """bfloat16 throughout, sharded with an index, adapter in float16: nothing is rounded."""
    source = tmp_path / "source"
    shutil.copytree(TINY, source)
    for name, stem in FOLDERS.items():
        path = source / name / f"{stem}.safetensors"
        tensors = {k: v.bfloat16() for k, v in safetensors.torch.load_file(path).items()}
        safetensors.torch.save_file(tensors, path)
    adapter = torch.load(source / f"{ADAPTER}.bin", weights_only=True)
    adapter = {g: {k: v.half() for k, v in t.items()} for g, t in adapter.items()}
    torch.save(adapter, source / f"{ADAPTER}.bin")
    expected = raw(source)
    for name, stem in FOLDERS.items():
        shard(source / name, stem)
    from_torch(tmp_path / "MODEL", source=source)
    convert("to-torch", tmp_path / "MODEL", "--out", tmp_path / "back")
    assert_bit_equal(raw(tmp_path / "back"), expected)


def shard(folder, stem):
    path = folder / f"{stem}.safetensors"
    tensors = read_tensors(path)
    arrays = {name: t.array().copy() for name, t in tensors.items()}
    specs = {name: Spec(t.dtype, t.shape) for name, t in tensors.items()}
    third = sum(t.nbytes for t in tensors.values()) // 3
    path.unlink()
    shards = write_tensors(folder, stem, specs, lambda name: [arrays[name]], third)
    assert len(shards) > 2
    where = {name: shard.path.name for shard in shards for name in shard.names}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_what_comes_back_converts_to_the_same_model(tiny_model, exported, tmp_path):
    from_torch(tmp_path / "MODEL", source=exported)
    assert files(tmp_path / "MODEL") == files(tiny_model)


CONFIG_FILES = (
    *("flux/transformer/config.json", "flux/vae/config.json", "flux/text_encoder/config.json"),
    *("flux/text_encoder_2/config.json", "flux/scheduler/scheduler_config.json"),
    *(f"{tower}/{name}.json" for tower in TOWERS for name in ("config", "preprocessor_config")),
)


@pytest.mark.parametrize("file", CONFIG_FILES)
def test_every_config_comes_back_as_it_was(exported, file):
    assert read_json(exported / file) == read_json(TINY / file)


def test_the_adapters_config_comes_back(exported):
    theirs = read_json(TINY / f"{ADAPTER}.json")
    assert theirs.items() <= read_json(exported / f"{ADAPTER}.json").items()


def test_a_changed_config_is_written_back_changed():
    original = read_json(TINY / "flux" / "vae" / "config.json")
    config = from_published("vae", original, TINY)
    assert to_published("vae", config, original) == original
    changed = to_published("vae", replace(config, scaling_factor=0.5), original)
    assert changed == original | {"scaling_factor": 0.5}


def test_a_model_without_published_configs_is_exported_with_those_of_flux(tiny_model, tmp_path):
    """Models converted before published configs were kept, and models trained here."""
    older = Path(shutil.copytree(tiny_model, tmp_path / "older"))
    manifest = read_json(older / "manifest.json")
    for component, entries in manifest["components"].items():
        if entries.pop("published.json", None):
            (older / component / "published.json").unlink()
    (older / "manifest.json").write_text(json.dumps(manifest))
    convert("to-torch", older, "--out", tmp_path / "torch")
    vae = AutoencoderKL.from_pretrained(tmp_path / "torch" / "flux" / "vae")
    assert vae.tile_sample_min_size == 1024
    clip = read_json(tmp_path / "torch" / "flux" / "text_encoder" / "config.json")
    assert (clip["bos_token_id"], clip["pad_token_id"], clip["projection_dim"]) == (0, 1, 768)


def test_the_published_libraries_load_what_comes_back(exported):
    flux = exported / "flux"
    for cls, folder in [
        (transformers.SiglipVisionModel, exported / "siglip"),
        (transformers.Dinov2Model, exported / "dinov2"),
        (transformers.CLIPTextModel, flux / "text_encoder"),
        (transformers.T5EncoderModel, flux / "text_encoder_2"),
        (FluxTransformer2DModel, flux / "transformer"),
        (AutoencoderKL, flux / "vae"),
    ]:
        loaded, info = cls.from_pretrained(folder, output_loading_info=True)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        original = cls.from_pretrained(TINY / folder.relative_to(exported))
        if cls is AutoencoderKL:
            assert loaded.tile_sample_min_size == original.tile_sample_min_size == 64
        x = dict(original.named_parameters())
        assert all(torch.equal(x[k], v) for k, v in loaded.named_parameters())


def test_the_pipeline_index_names_what_is_there(exported):
    theirs = json.loads((TINY / "flux" / "model_index.json").read_text())
    ours = json.loads((exported / "flux" / "model_index.json").read_text())
    for name in ("scheduler", "transformer", "vae", "text_encoder", "text_encoder_2"):
        assert ours[name] == theirs[name]
    for name in ("tokenizer", "tokenizer_2"):
        theirs = files(TINY / "flux" / name)
        ours = files(exported / "flux" / name)
        assert ours.keys() == theirs.keys() | {"tokenizer.json"}
        assert theirs.items() <= ours.items()


def test_bfl_files_there_and_back_give_the_same_model(tiny_model, tmp_path):
    out = tmp_path / "bfl"
    convert("to-torch", tiny_model, "--out", out, "--bfl")
    assert not (out / "flux" / "transformer").exists()
    convert(
        *("from-torch", "--flux", out / "flux1-dev.safetensors", "--vae", out / "ae.safetensors"),
        *("--t5", out / "flux", "--clip", out / "flux" / "text_encoder"),
        *("--siglip", out / "siglip", "--dinov2", out / "dinov2"),
        *("--adapter", out / f"{ADAPTER}.safetensors", "--out", tmp_path / "MODEL"),
    )
    expected = files(tiny_model)
    del expected["scheduler/published.json"]  # a single file comes without one
    actual = files(tmp_path / "MODEL")
    assert actual.pop("manifest.json") != expected.pop("manifest.json")
    assert actual == expected


def test_loaded_components_hold_the_published_values(tiny_model):
    loaded = loading.load_model(tiny_model, dtype="bfloat16")
    published = raw(TINY)["flux/transformer"]["transformer_blocks.1.attn.to_q.weight"]
    ours = loading.parameters(loaded.transformer)["transformer_blocks.*.attn.to_q.kernel"]
    assert ours.get_value().dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(ours.get_value()[1].T.astype(jnp.float32)), published.bfloat16().float()
    )
    number = loaded.transformer.config.num_layers  # the first single block
    published = raw(TINY)["adapter ip_adapter"][f"{number}.to_v_ip.bias"]
    ours = loading.parameters(loaded.adapter)["ip_adapter.single_transformer_blocks.*.to_v_ip.bias"]
    np.testing.assert_array_equal(
        np.asarray(ours.get_value()[0].astype(jnp.float32)), published.bfloat16().float()
    )
    assert loaded.tokenizer == tiny_model / "tokenizer"
    assert loaded.scheduler.use_dynamic_shifting


def test_a_dtype_is_applied(tmp_path):
    from_torch(tmp_path / "MODEL", "--dtype", "bfloat16")
    folder = ModelFolder.open(tmp_path / "MODEL")
    for kind in loading.COMPONENTS:
        assert {str(t.dtype) for t in folder.tensors(kind).values()} == {"bfloat16"}
    loaded = loading.parameters(loading.load_component(folder, "clip", "float32"))
    assert loaded.keys() == folder.tensors("clip").keys()
    assert {x.dtype for x in loaded.values()} == {jnp.dtype("float32")}


def test_checkpoints_with_more_than_one_tower(tmp_path):
    """SigLIP and CLIP whole, T5 with decoder and a copied table, DINOv2 in a classifier."""
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2}
    vision = {**small, "image_size": 28, "patch_size": 14}
    text = {**small, "vocab_size": 40, "eos_token_id": 39, "bos_token_id": 38, "pad_token_id": 1}
    t5 = transformers.T5Config(
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        vocab_size=40,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    whole = {
        "siglip": transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=vision)
        ),
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        ),
        "t5": transformers.T5ForConditionalGeneration(t5),
        "dinov2": transformers.Dinov2ForImageClassification(
            transformers.Dinov2Config(
                **{k: v for k, v in vision.items() if k != "intermediate_size"}
            )
        ),
    }
    for kind, oracle in whole.items():
        oracle.save_pretrained(tmp_path / kind)
    path = tmp_path / "t5" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    safetensors.torch.save_file(tensors, path)
    parts = [a for kind in whole for a in (f"--{kind}", tmp_path / kind)]
    convert("from-torch", *parts, "--out", tmp_path / "MODEL")
    loaded = loading.load_model(tmp_path / "MODEL")
    assert loaded.transformer is None
    for kind, name in {
        "siglip": "vision_model.encoder.layers.*.mlp.fc1.bias",
        "clip": "text_model.encoder.layers.*.mlp.fc1.bias",
    }.items():
        theirs = whole[kind].state_dict()[name.replace("*", "1")]
        ours = loading.parameters(getattr(loaded, kind))[name].get_value()[1]
        np.testing.assert_array_equal(np.asarray(ours), theirs)
    convert("to-torch", tmp_path / "MODEL", "--out", tmp_path / "back")
    for kind, folder in {"clip": "flux/text_encoder", "siglip": "siglip"}.items():
        whole_config = read_json(tmp_path / kind / "config.json")
        tower = whole_config[PUBLISHED[kind].inside] | PUBLISHED[kind].names
        assert read_json(tmp_path / "back" / folder / "config.json") == tower


def test_hub_ids_fetch_what_is_needed_and_no_more(tiny_model, tmp_path, monkeypatch):
    def download(name, revision, allow_patterns):
        source = TINY / name.removeprefix("org/")
        paths = [str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()]
        paths += ["flux1-dev.safetensors", "text_encoder/model.fp16.bin", "transformer/x.gguf"]
        wanted = [*filter_repo_objects(paths, allow_patterns=allow_patterns)]
        assert len(wanted) == len(paths) - 3
        target = tmp_path / name
        for path in wanted:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, target / path)
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    convert("from-torch", "--flux", "org/flux", "--out", tmp_path / "MODEL")
    expected = files(tiny_model)
    for name, content in files(tmp_path / "MODEL").items():
        assert name == "manifest.json" or content == expected[name]


def test_inspect_lists_what_there_is(tiny_model, capsys):
    convert("inspect", tiny_model, "--verify")
    out = capsys.readouterr().out
    assert "545,680  float32" in out
    assert all(kind in out for kind in loading.COMPONENTS)
    assert "every file matches its checksum" in out
