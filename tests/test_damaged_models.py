"""MODEL folders that are damaged, or are not what their configs say, are refused."""

import json

import pytest

from convert.commands import main
from ic_jax.weights import loading
from ic_jax.weights.tensors import WeightsError
from tests.conftest import TINY, edit_json


@pytest.fixture
def model(tmp_path):
    main(["from-torch", "--flux", str(TINY / "flux"), "--out", str(tmp_path / "MODEL")])
    return tmp_path / "MODEL"


def test_a_damaged_model_folder(model, run):
    def inspect(*more):
        status, error = run("inspect", model, *more, out=None)
        assert status == 3
        return error

    file = model / "vae" / "model.safetensors"
    intact = file.read_bytes()
    file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert run("inspect", model, out=None)[0] == 0
    assert "1 files differ from their checksum: vae/model.safetensors" in inspect("--verify")
    with pytest.raises(WeightsError, match="checksum"):
        loading.load_model(model)
    with pytest.raises(WeightsError, match="checksum"):
        loading.load_component(model, "vae")
    assert run("to-torch", model, out=model.parent / "back" / "torch")[0] == 3
    assert loading.load_model(model, verify=False).vae is not None
    file.write_bytes(intact[:-1])
    assert f"{len(intact) - 1} bytes, expected {len(intact)}" in inspect()
    file.unlink()
    assert "is missing" in inspect()
    edit_json(model / "manifest.json", format=9)
    assert "format 9, this version reads 1" in inspect()
    edit_json(model / "manifest.json", format=1, components={"vae": {"../x": {}}})
    assert "is damaged" in inspect()
    entry = {"size": 1, "sha256": ""}
    edit_json(model / "manifest.json", components={"vae": {"../x": entry}})
    assert "not a plain file name" in inspect()
    edit_json(model / "manifest.json", components={"unet": {}})
    assert "unknown component unet" in inspect()
    (model / "manifest.json").write_text("{")
    assert "is damaged" in inspect()
    (model / "manifest.json").unlink()
    assert "is not an ic_jax model" in inspect()
    assert run("inspect", model / "nowhere", out=None)[0] == 2


def test_a_model_that_is_not_what_its_config_says(model):
    with pytest.raises(WeightsError, match="has no adapter, only transformer"):
        loading.load_component(model, "adapter")
    config = json.loads((model / "clip" / "config.json").read_text())
    config["num_hidden_layers"] = 2
    text = json.dumps(config).ljust((model / "clip" / "config.json").stat().st_size)
    (model / "clip" / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"16 misshapen: .* \[3, 24\], expected \[2, 24\]"):
        loading.load_component(model, "clip", verify=False)
