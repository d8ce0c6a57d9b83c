"""The adapter's pickle: harmful, damaged or another's, it is refused, and nothing in it runs."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from convert.torch_read import read_torch
from ic_jax.weights.tensors import WeightsError
from tests.conftest import TINY


class Evil:
    """Its pickle makes a file when it is loaded by a reader that is not careful."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def zip_of(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"x/{name}", content)
    return path


@pytest.mark.parametrize(
    "call",
    [
        (os.system, ("touch {}",)),
        (eval, ("open('{}', 'w')",)),
        (getattr, (os, "system")),
        (Path, ("{}",)),
        (torch.nn.Linear, (2, 3)),
    ],
)
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, run, call):
    mark = tmp_path / "ran"
    function, arguments = call
    filled = tuple(a.format(mark) if isinstance(a, str) else a for a in arguments)
    if function is getattr:
        content = b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n\x86R."
    else:
        content = pickle.dumps({"ip_adapter": Evil(function, filled)}, protocol=2)
    path = zip_of(tmp_path / "adapter.bin", {"data.pkl": content, "byteorder": b"little"})
    status, error = run("from-torch", "--flux", TINY / "flux", "--adapter", path)
    assert status == 3
    assert f"{path}: refused: its pickle asks for" in error
    assert "nothing in it was run" in error
    assert "weights_only" not in error
    assert not mark.exists()


def test_pickles_of_other_forms(tmp_path):
    tensors = {"ip_adapter": {"a": torch.zeros(4000)}}
    torch.save(tensors, tmp_path / "good.bin")
    good = (tmp_path / "good.bin").read_bytes()
    with zipfile.ZipFile(tmp_path / "good.bin") as archive:
        entries = {i.filename.split("/", 1)[1]: archive.read(i) for i in archive.infolist()}
    torch.save(tensors, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    zip_of(tmp_path / "compressed.bin", entries, zipfile.ZIP_DEFLATED)
    zip_of(tmp_path / "big.bin", entries | {"byteorder": b"big"})
    zip_of(tmp_path / "none.bin", {"a": b"b"})
    zip_of(tmp_path / "short.bin", entries | {"data/0": b"123"})
    zip_of(tmp_path / "lost.bin", {k: v for k, v in entries.items() if k != "data/0"})
    zip_of(tmp_path / "garbage.bin", entries | {"data.pkl": b"\x80\x02garbage"})
    zip_of(tmp_path / "number.bin", entries | {"data.pkl": pickle.dumps({"epoch": 3})})
    loop = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
    zip_of(tmp_path / "loop.bin", entries | {"data.pkl": loop})
    at = good.index(bytes(4000))
    (tmp_path / "flipped.bin").write_bytes(good[:at] + b"\x01" + good[at + 1 :])
    (tmp_path / "cut.bin").write_bytes(good[:-100])
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "page.bin").write_bytes(b"\n<html>")
    (tmp_path / "safe.bin").write_bytes(b"\x00" * 64)
    for name, message in {
        "legacy": "is no zip archive",
        "compressed": "is compressed, which torch.save never does",
        "big": "big-endian",
        "none": "none that torch.save made",
        "short": "another size than its tensors",
        "lost": r"damaged \(KeyError\)",
        "garbage": "damaged",
        "number": "holds no tensors, only epoch",
        "loop": "the group a occurs twice",
        "flipped": "storage 0 differs from its checksum",
        "cut": "truncated or damaged",
        "empty": "is empty",
        "page": "is a web page",
        "safe": "is no zip archive",
    }.items():
        path = tmp_path / f"{name}.bin"
        with pytest.raises(WeightsError, match=message) as error:
            [t.array() for t in read_torch(path).values()]
        assert str(path) in str(error.value)


def test_a_pickle_cannot_reach_beyond_its_storage(tmp_path):
    torch.save({"a": torch.zeros(8)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as archive:
        entries = {i.filename.split("/", 1)[1]: archive.read(i) for i in archive.infolist()}
    shape = b"K\x08\x85"
    assert entries["data.pkl"].count(shape) == 1
    entries["data.pkl"] = entries["data.pkl"].replace(shape, b"K\x09\x85")
    with pytest.raises(WeightsError, match="damaged"):
        read_torch(zip_of(tmp_path / "x.bin", entries))


def test_another_adapter(tmp_path, run):
    torch.save({"unet": {"a": torch.zeros(1)}}, tmp_path / "x.bin")
    command = ("from-torch", "--flux", TINY / "flux", "--adapter", tmp_path / "x.bin")
    assert "is nothing that ic_jax knows, by its 1 tensors (unet.a)" in run(*command)[1]
    shutil.copy(TINY / "instantcharacter_ip-adapter.bin", tmp_path / "x.bin")
    status, error = run(*command)  # the published sizes are tried
    assert (status, "missing: image_proj.cross_layer_blocks.2." in error) == (3, True)
    (tmp_path / "x.json").write_text('{"inner_dim": 48}')
    assert "x.json: AdapterConfig: " in run(*command)[1]
