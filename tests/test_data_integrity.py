"""Prepared data and caches: damage is told, and nothing that they say is executed."""

import json
import shutil
import sys

import numpy as np
import pytest

from tests.data_source import prepared
from train.data.card import CARD, checksum
from train.data.dataset import Dataset
from train.data.encoded_store import Embeddings, EncodedRows
from train.data.errors import DataError
from train.data.verify import verify


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("integrity"))


@pytest.fixture
def copy(data, tmp_path):
    return shutil.copytree(data, tmp_path / "copy")


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def test_a_data_set_that_names_a_module_does_not_import_it(copy, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    features = copy / "features.json"
    content = json.loads(features.read_text())
    content["pythonClassName"] = "planted.Features"
    features.write_text(json.dumps(content))
    card = json.loads((copy / CARD).read_text())
    for file in card["written"]:
        if file["file"] == features.name:
            file["bytes"] = features.stat().st_size
    card["checksum"] = checksum(card)
    (copy / CARD).write_text(json.dumps(card))
    assert Dataset(copy).read(0).character
    assert "planted" not in sys.modules


def test_verify_tells_a_flipped_bit_of_any_file(data, copy):
    files = [p.relative_to(copy) for p in copy.rglob("*") if p.is_file() and p.name != CARD]
    assert {"features.json", "dataset_info.json", "character.npy"} <= {f.name for f in files}
    rng = np.random.default_rng(0)
    for file in files:
        if not (copy / file).stat().st_size:
            continue
        flip(copy / file, rng)
        with pytest.raises(DataError, match=f"1 of .* files differ .*{file.name}"):
            verify(copy)
        shutil.copy(data / file, copy / file)
    assert "all as they were written" in verify(copy)


def test_a_flipped_bit_of_the_card_is_told(copy):
    """Its counts too, which nothing else holds; a space between two values says the same."""
    file, rng = copy / CARD, np.random.default_rng(4)
    whole = file.read_bytes()
    for _ in range(100):
        flip(file, rng)
        try:
            values = Dataset(copy).card
        except DataError as error:
            assert str(file) in str(error)  # noqa: PT017
        else:
            names = json.loads(whole).keys() - {"checksum"}
            assert {n: values.get(n) for n in names} == {n: json.loads(whole)[n] for n in names}
        file.write_bytes(whole)


def test_a_run_does_not_begin_on_a_damaged_index(data, copy):
    Dataset(copy).check_index()
    rng = np.random.default_rng(1)
    for file in (copy / "index").iterdir():
        for _ in range(5):
            flip(file, rng)
            with pytest.raises(DataError, match=file.name):
                Dataset(copy).check_index()
            shutil.copy(data / "index" / file.name, file)


def test_a_flipped_bit_of_a_shard_changes_no_record_silently(data, copy):
    whole = [Dataset(data).read(n) for n in range(len(Dataset(data)))]
    shards = [copy / shard["file"] for shard in Dataset(data).card["shards"]]
    rng, told = np.random.default_rng(2), 0
    for trial in range(20):
        shard = shards[trial % len(shards)]
        flip(shard, rng)
        dataset = Dataset(copy)
        for number, record in enumerate(whole):
            try:
                assert dataset.read(number) == record
            except DataError:
                told += 1
        shutil.copy(data / shard.name, shard)
    assert told


def test_a_flipped_bit_of_a_cached_row_is_told(tmp_path):
    rng = np.random.default_rng(3)
    rows = {
        n: Embeddings(
            rng.standard_normal((4, 8)).astype(np.float32), rng.standard_normal(8).astype("f4")
        )
        for n in range(5)
    }
    cache = EncodedRows(tmp_path / "cache", Embeddings, np.arange(5), {"a": 1})
    cache.write(lambda records: {n: rows[n] for n in records})
    shard = next((tmp_path / "cache").glob("*.safetensors"))
    whole = shard.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in rng.integers(start, len(whole), 40):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        again = EncodedRows(tmp_path / "cache", Embeddings, np.arange(5), {"a": 1})
        told = 0
        for n in range(5):
            try:
                read = again.read(n)
            except DataError as error:
                assert "differs from its checksum" in str(error)  # noqa: PT017
                told += 1
            else:
                assert all(map(np.array_equal, read, rows[n]))
        assert told == 1


CHANGES = [None, -1, 1.5, True, "a", [], {}, [3], 2**80, ["../x"]]


@pytest.mark.parametrize("key", ["pictures", "characters", "in_pairs", "shards", "written"])
def test_a_card_of_other_types_is_one_line(copy, key):
    card = json.loads((copy / CARD).read_text())
    for value in CHANGES:
        (copy / CARD).write_text(json.dumps(card | {key: value}))
        if key == "written" and value == []:
            continue
        with pytest.raises(DataError, match=r"card\.json: .*copy the data set again") as error:
            Dataset(copy)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["file", "bytes", "records"])
def test_a_shard_of_other_types_or_elsewhere_is_one_line(copy, field):
    card = json.loads((copy / CARD).read_text())
    for value in [*CHANGES, "../../x", "/etc/passwd"]:
        shards = [card["shards"][0] | {field: value}, *card["shards"][1:]]
        (copy / CARD).write_text(json.dumps(card | {"shards": shards}))
        with pytest.raises(DataError) as error:
            Dataset(copy)
        assert str(copy) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_data_set_of_an_earlier_version_is_read(copy):
    card = json.loads((copy / CARD).read_text())
    index = {f["file"].removeprefix("index/"): f["bytes"] for f in card.pop("written")}
    del card["checksum"]
    card["index"] = {name: size for name, size in index.items() if (copy / "index" / name).exists()}
    (copy / CARD).write_text(json.dumps(card))
    dataset = Dataset(copy)
    dataset.check_index()
    assert dataset.read(0).character
    assert "all as they were written" in verify(copy)
