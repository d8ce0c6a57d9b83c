"""`python -m convert inspect` on anything that a user may name: one line, no traceback."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from convert.commands import main
from tests.conftest import TINY


def empty(path):
    path.touch()


def text(path):
    path.write_text("These are the weights.\n")


def picture(path):
    Image.new("RGB", (8, 8)).save(path, "PNG")


def pickled(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def huge_header(path):
    path.write_bytes((2**40).to_bytes(8, "little") + b"{" + b" " * 100)


def header_beyond_the_file(path):
    path.write_bytes((10**6).to_bytes(8, "little") + b"{" + b" " * 100)


def nested_header(path):
    header = b'{"a":' + b"[" * 50_000
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def cut(path):
    safetensors.numpy.save_file({"a": np.zeros(100)}, path)
    os.truncate(path, path.stat().st_size - 10)


def noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(1000))


def zip_of_nothing(path):
    path.write_bytes(b"PK\x03\x04" + bytes(100))


def gguf_of_nothing(path):
    path.write_bytes(b"GGUF" + bytes(100))


def json_of_nothing(path):
    path.write_text('{"weight_map": {"a": "../../b"}}')


def folder(path):
    path.mkdir()


def folder_without_weights(path):
    path.mkdir()
    (path / "config.json").write_text("{}")


def broken_link(path):
    path.symlink_to(path.with_name("nowhere"))


def pipe(path):
    os.mkfifo(path)


def pipe_in_a_folder(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    os.mkfifo(path / "model.safetensors")


MAKERS = [
    *(empty, text, picture, pickled, huge_header, header_beyond_the_file, nested_header, cut),
    *(noise, zip_of_nothing, gguf_of_nothing, json_of_nothing, folder, folder_without_weights),
    *(broken_link, pipe, pipe_in_a_folder),
]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".gguf", ".json", ""])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_one_line(make, suffix, tmp_path, capsys):
    path = tmp_path / f"weights{suffix}"
    make(path)
    assert main(["inspect", str(path)]) in (2, 3)
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"error: {tmp_path}")
    assert len(line) < 500


def test_the_class_of_a_pipeline_is_named_since_tensors_do_not_tell_kontext(tmp_path, capsys):
    folder = shutil.copytree(TINY / "flux", tmp_path / "kontext")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "FluxKontextPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    assert main(["inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: a pipeline of the class FluxKontextPipeline"
    assert any("transformer" in line for line in lines[1:])
