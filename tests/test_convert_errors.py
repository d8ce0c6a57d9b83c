"""Refusals of conversion: one line each, and nothing left behind."""

import json
import os
import shutil
from unittest.mock import MagicMock

import pytest
import safetensors.torch
import torch
from huggingface_hub import errors

from tests.conftest import TINY

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def edit(path, change):
    """Rewrite a safetensors file with `change` applied to its dictionary of tensors."""
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def test_everything_that_is_wrong_is_in_one_error(flux, run):
    def damage(tensors):
        for i in range(2):
            del tensors[f"transformer_blocks.{i}.attn.to_q.weight"]
        for i in range(12):
            tensors[f"extra.{i:02}"] = torch.zeros(1)
        tensors["proj_out.bias"] = torch.zeros(3)
        tensors["x_embedder.weight"][2, 3] = torch.nan
        tensors["single_transformer_blocks.1.proj_mlp.bias"][0] = torch.inf

    def damage_vae(tensors):
        del tensors["decoder.conv_in.bias"]

    edit(flux / TRANSFORMER, damage)
    edit(flux / "vae/diffusion_pytorch_model.safetensors", damage_vae)
    status, error = run("from-torch", "--flux", flux)
    assert status == 3
    for part in (
        f"{flux}/transformer: 2 missing: transformer_blocks.0.attn.to_q.weight, ",
        "; 12 unexpected: extra.00, extra.01, ",
        "extra.09, ...;",
        "; 1 misshapen: proj_out.bias [3], expected [16];",
        "; 2 not finite: single_transformer_blocks.1.proj_mlp.bias, x_embedder.weight;",
        f"{flux}/vae: 1 missing: decoder.conv_in.bias;",
    ):
        assert part in error
    assert "extra.10" not in error


def test_a_nan_alone_is_found_while_writing(flux, run):
    edit(flux / TRANSFORMER, lambda t: t["proj_out.bias"].fill_(torch.nan))
    assert "transformer: 1 not finite: proj_out.bias;" in run("from-torch", "--flux", flux)[1]


def test_an_overflow_of_the_type_asked_for_is_found(flux, run):
    edit(flux / TRANSFORMER, lambda t: t["proj_out.bias"].fill_(1e6))
    command = ("from-torch", "--flux", flux, "--dtype")
    assert "1 not finite: proj_out.bias;" in run(*command, "float16")[1]
    assert run(*command, "bfloat16")[0] == 0


def test_blocks_of_several_types_need_one_named(flux, run):
    name = "transformer_blocks.1.attn.to_q.weight"
    edit(flux / TRANSFORMER, lambda t: t.update({name: t[name].bfloat16()}))
    status, error = run("from-torch", "--flux", flux)
    assert status == 3
    assert "attn.to_q.kernel bfloat16 and float32 in different blocks, give --dtype" in error
    assert run("from-torch", "--flux", flux, "--dtype", "float32")[0] == 0


def test_integers_are_no_weights(flux, run):
    edit(flux / TRANSFORMER, lambda t: t.update({"proj_out.bias": t["proj_out.bias"].byte()}))
    assert "proj_out.bias uint8, expected floating point" in run("from-torch", "--flux", flux)[1]


def sharded(flux):
    folder = flux / "transformer"
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    path.unlink()
    names = sorted(tensors)
    where = {}
    for i, part in enumerate((names[:60], names[60:])):
        safetensors.torch.save_file({n: tensors[n] for n in part}, folder / f"{i}.safetensors")
        where |= dict.fromkeys(part, f"{i}.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return folder, index, where


def test_shards_that_do_not_fit_their_index(flux, run):
    folder, index, where = sharded(flux)
    assert run("from-torch", "--flux", flux, out=flux.parent / "good" / "MODEL")[0] == 0
    edit(folder / "0.safetensors", lambda t: t.update({max(where): torch.zeros(1)}))
    assert f"{max(where)} is in another shard too" in run("from-torch", "--flux", flux)[1]
    edit(folder / "0.safetensors", lambda t: t.pop(max(where)))
    index.write_text(json.dumps({"weight_map": where | {"more": "0.safetensors"}}))
    assert "differs from its shards by 1 keys: more;" in run("from-torch", "--flux", flux)[1]
    (folder / "1.safetensors").unlink()
    assert "1.safetensors: is missing" in run("from-torch", "--flux", flux)[1]
    index.write_text(json.dumps({"weight_map": {"a": "../vae/x.safetensors"}}))
    assert "is missing" in run("from-torch", "--flux", flux)[1]
    index.write_text("[]")
    assert "not a JSON object" in run("from-torch", "--flux", flux)[1]


def test_a_truncated_file(flux, run):
    path = flux / TRANSFORMER
    os.truncate(path, path.stat().st_size - 1)
    status, error = run("from-torch", "--flux", flux)
    assert status == 3
    assert f"{path}: is truncated" in error


def test_a_copy_of_the_embedding_must_be_one(flux, run):
    path = flux / "text_encoder_2/model.safetensors"
    copy = "encoder.embed_tokens.weight"
    edit(path, lambda t: t.update({copy: t["shared.weight"].clone()}))
    assert run("from-torch", "--flux", flux)[0] == 0
    shutil.rmtree(flux.parent / "out")
    edit(path, lambda t: t[copy].mul_(2))
    assert "embed_tokens.weight differs from shared.weight" in run("from-torch", "--flux", flux)[1]


def test_bad_usage(tmp_path, run):
    assert run("from-torch")[0] == 2
    status, error = run("from-torch", "--adapter", TINY / "instantcharacter_ip-adapter.bin")
    assert (status, "give --flux too" in error) == (2, True)
    status, error = run("from-torch", "--flux", tmp_path / "nowhere")
    assert (status, "no such file or folder" in error) == (2, True)
    status, error = run("from-torch", "--flux", tmp_path)
    assert (status, "has no config.json of a transformer" in error) == (3, True)
    file = TINY / "siglip" / "model.safetensors"
    status, error = run("from-torch", "--t5", file)
    assert (status, "holds no t5, but siglip (transformers); give it to --siglip" in error) == (
        3,
        True,
    )
    with pytest.raises(SystemExit) as stop:
        run("from-torch", "--dtype", "int8")
    assert stop.value.code == 2


def test_the_hub_offline_and_gated(run, monkeypatch):
    status, error = run("from-torch", "--siglip", "google/siglip-so400m-patch14-384")
    assert (status, "cannot be reached" in error) == (2, True)

    def refuse(kind):
        def download(*_, **__):
            raise kind("no\nno", response=MagicMock())

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        return run("from-torch", "--flux", "black-forest-labs/FLUX.1-dev")

    status, error = refuse(errors.GatedRepoError)
    assert (status, "accept its licence" in error, "hf auth login" in error) == (2, True, True)
    assert "no such repository" in refuse(errors.RepositoryNotFoundError)[1]
    assert "the Hugging Face Hub answered: no" in refuse(errors.HfHubHTTPError)[1]
