"""torch's .bin files: few bytes cannot ask for much memory."""

import zipfile

import pytest
import torch

from convert.torch_read import read_torch
from ic_jax.weights.tensors import WeightsError


def with_pickle(path, change):
    """Write a .bin file of torch whose pickle `change` has changed."""
    torch.save({"a": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    entries[name] = change(entries[name])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("put", [b"r" + (2**28).to_bytes(4, "little"), b"p268435456\n"])
def test_a_pickle_that_numbers_an_object_beyond_its_bytes_is_refused(tmp_path, put):
    path = with_pickle(tmp_path / "far.bin", lambda data: data[:2] + b"}" + put + b"0" + data[2:])
    with pytest.raises(WeightsError, match=f"asks for room for {2**28} objects"):
        read_torch(path)


def test_the_same_pickle_with_a_near_number_is_read(tmp_path):
    near = b"r" + (9).to_bytes(4, "little")
    path = with_pickle(tmp_path / "near.bin", lambda data: data[:2] + b"}" + near + b"0" + data[2:])
    assert list(read_torch(path)) == ["a"]


def test_a_tensor_that_repeats_a_few_numbers_without_end_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "repeats.bin")
    with pytest.raises(WeightsError, match="damaged"):
        read_torch(tmp_path / "repeats.bin")
