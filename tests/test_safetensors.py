"""The safetensors reader and writer against the published ones, and on damaged files."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from ic_jax.weights.safetensors_io import Spec, read_tensors, write_tensors
from ic_jax.weights.tensors import WeightsError, contiguous


def file_of(path, header, data=b"", tail=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data + tail)
    return path


def entry(shape=(2,), dtype="F32", offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "bf16": rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
        "f32": rng.normal(size=(4,)).astype(np.float32),
        "scalar": np.array(1.5),
        "none": np.empty((0, 7), np.float16),
        "f8": rng.normal(size=(3,)).astype(ml_dtypes.float8_e4m3fn),
        "ids": np.arange(6).reshape(2, 3),
        "flags": np.array([True, False, True]),
    }


def write(folder, tensors, **more):
    specs = {name: Spec(x.dtype, x.shape) for name, x in tensors.items()}
    return write_tensors(folder, "model", specs, lambda name: [tensors[name]], **more)


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        array = actual[name].array()
        assert (
            (array.dtype, array.shape)
            == (x.dtype, x.shape)
            == (
                actual[name].dtype,
                actual[name].shape,
            )
        )
        assert array.tobytes() == x.tobytes()


def test_reads_what_it_wrote(tmp_path, tensors):
    (written,) = write(tmp_path, tensors)
    assert written.path.name == "model.safetensors"
    assert written.size == written.path.stat().st_size
    assert_equal(read_tensors(written.path), tensors)


def test_the_published_library_reads_it_and_writes_for_it(tmp_path, tensors):
    (written,) = write(tmp_path, tensors)
    theirs = safetensors.torch.load_file(written.path)
    assert theirs["bf16"].dtype == torch.bfloat16
    np.testing.assert_array_equal(theirs["f32"], tensors["f32"])
    np.testing.assert_array_equal(theirs["bf16"].float(), tensors["bf16"].astype(np.float32))
    numpy_only = {k: v for k, v in tensors.items() if k not in ("bf16", "f8")}
    safetensors.numpy.save_file(numpy_only, tmp_path / "theirs.safetensors", {"a": "b"})
    assert_equal(read_tensors(tmp_path / "theirs.safetensors"), numpy_only)


def test_shards_are_of_the_size_asked_for(tmp_path):
    tensors = {f"t{i}": np.full((10,), i, np.float32) for i in range(5)}
    written = write(tmp_path, tensors, shard_bytes=80)
    assert [w.path.name for w in written] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert [w.names for w in written] == [("t0", "t1"), ("t2", "t3"), ("t4",)]
    together = {}
    for w in written:
        together |= read_tensors(w.path)
    assert_equal(together, tensors)


def test_a_transposed_matrix_is_made_contiguous():
    x = np.arange(130 * 67, dtype=np.int32).reshape(130, 67)
    assert contiguous(x.T).flags.c_contiguous
    np.testing.assert_array_equal(contiguous(x.T), x.T)


PAIR = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},%s}'
DAMAGED = {
    "empty": (b"", r"is empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html>", r"web page"),
    "zip": (b"PK\x03\x04" + bytes(60), r"renamed torch .bin"),
    "pickle": (b"\x80\x02}q\x00." + bytes(60), r"Python pickle"),
    "gguf": (b"GGUF" + bytes(60), r"quantised"),
    "noise": (bytes(range(200)), r"not a safetensors file"),
    "short": (b"\x10\x00", r"not a safetensors file"),
    "cut header": ((900).to_bytes(8, "little") + b'{"a":', r"truncated within its header"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_another_kind_of_file_is_named(tmp_path, name):
    content, message = DAMAGED[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        read_tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, bytes(7), r"truncated: 7\d bytes, expected 7\d"),
        ({"a": entry()}, bytes(9), r"trailing bytes"),
        ({"a": entry(), "b": entry()}, bytes(8), r"bytes before b overlap"),
        ({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17), r"belong to none"),
        ({"a": entry(offsets=(0, 4))}, bytes(4), r"a has 4 bytes, not its shape's"),
        ({"a": entry(dtype="F4")}, bytes(8), r"a has type F4; supported are"),
        ({"a": entry(shape=(-2,))}, bytes(8), r"entry a is malformed"),
        ({"a": entry(shape=(True, 2))}, bytes(8), r"entry a is malformed"),
        ({"a": {"dtype": "F32"}}, b"", r"entry a is malformed"),
        ({"a": 3}, b"", r"entry a is malformed"),
        (b'{"a":' + b"[" * 100_000, b"", r"header is not JSON"),
        (b'{"a":1', b"", r"header is not JSON"),
        (PAIR % b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}', bytes(8), r"keys: a;"),
        (PAIR % b'"b":{"shape":[1],"shape":[1]}', bytes(8), r"duplicate keys: shape"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header, data, message):
    path = file_of(tmp_path / "x.safetensors", header, data)
    with pytest.raises(WeightsError, match=message):
        read_tensors(path)


def test_a_header_whose_length_looks_like_another_kind_of_file(tmp_path):
    for length in (ord("<"), 0x80, 0x80 + 256):
        header = json.dumps({"a": entry()}).encode().ljust(length)
        path = file_of(tmp_path / "x.safetensors", header, bytes(8))
        assert list(read_tensors(path)) == ["a"]
