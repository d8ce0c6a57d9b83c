"""The adapter's file: what torch saves is read without torch, and its sizes beside it or named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from convert.torch_read import read_torch
from ic_jax.config import AdapterConfig
from ic_jax.weights import loading
from ic_jax.weights.model_folder import ModelFolder
from tests.conftest import ADAPTER, TINY, convert


def test_torch_bin_forms(tmp_path):
    """Views, parameters, scalars, empty tensors and module states, as torch saves them."""
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    content = {
        "transposed": x.t(),
        "slice": x[1:3, 2:],
        "parameter": torch.nn.Parameter(x),
        "scalar": torch.tensor(3.0),
        "bf16": x.bfloat16(),
        "empty": torch.empty(0, 3),
        "module": torch.nn.Linear(2, 3).state_dict(),
    }
    torch.save(content, tmp_path / "x.bin")
    actual = read_torch(tmp_path / "x.bin")
    flat = {k: v for k, v in content.items() if k != "module"}
    flat |= {f"module.{k}": v for k, v in content["module"].items()}
    assert actual.keys() == flat.keys()
    for name, tensor in flat.items():
        assert actual[name].shape == tuple(tensor.shape)
        value = torch.from_numpy(actual[name].array().astype(np.float32))
        assert torch.equal(value, tensor.detach().float()), name


def test_the_adapter_needs_neither_torch_nor_its_modules(tmp_path):
    """In a process in which importing torch fails."""
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from convert.commands import main\n"
        f"sys.exit(main(['from-torch', '--flux', '{TINY / 'flux'}', '--adapter', "
        f"'{TINY / ADAPTER}.bin', '--out', '{tmp_path / 'MODEL'}']) or "
        f"main(['to-torch', '{tmp_path / 'MODEL'}', '--out', '{tmp_path / 'back'}']))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)
    back = torch.load(tmp_path / "back" / f"{ADAPTER}.bin", weights_only=True, mmap=True)
    assert list(back) == ["ip_adapter", "image_proj"]


def test_sizes_beside_the_adapter_or_named(tmp_path):
    for suffix in (".bin", ".json"):
        shutil.copy(TINY / f"{ADAPTER}{suffix}", tmp_path / f"mine{suffix}")
    sizes = AdapterConfig.from_dict(json.loads((tmp_path / "mine.json").read_text()))
    flux = ("from-torch", "--flux", TINY / "flux", "--adapter", tmp_path / "mine.bin")
    convert(*flux, "--out", tmp_path / "beside")
    os.rename(tmp_path / "mine.json", tmp_path / "elsewhere.json")
    named = ("--adapter-config", tmp_path / "elsewhere.json")
    convert(*flux, *named, "--out", tmp_path / "named")
    for name in ("beside", "named"):
        assert loading.read_config(ModelFolder.open(tmp_path / name), "adapter") == sizes
