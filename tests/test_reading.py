"""Reading of a MODEL folder in threads: damage, errors, interruption, order, memory."""

import _thread
import hashlib
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from ic_jax import InstantCharacterPipeline
from ic_jax.weights import loading, model_folder, reading
from ic_jax.weights.model_folder import ModelFolder
from ic_jax.weights.reading import ByteBudget, FileToRead, read_files
from ic_jax.weights.tensors import WeightsError
from tests import toy


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The toy model, in several files for each component."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_folder, "SHARD_BYTES", 4000)
        return toy.write_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture
def copied(model, tmp_path):
    return shutil.copytree(model, tmp_path / "model")


def flip(path: Path, position: int) -> None:
    """Change one bit of a file's byte at `position`."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def files(folder: Path) -> list[FileToRead]:
    """Two files with two tensors each, that do nothing."""
    listed = []
    for name in ("a", "b"):
        path = folder / name
        path.write_bytes(name.encode() * 100)
        uses = [(end, lambda: None) for end in (50, 100)]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        listed.append(FileToRead(path, 100, sha256, uses))
    return listed


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read_files")]


# Damage


def header_end(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


POSITIONS = {
    "length of the header": lambda path: 0,
    "high byte of that length": lambda path: 7,
    "first byte of the header": lambda path: 8,
    "a name": lambda path: path.read_bytes().index(b"text_model"),
    "a dtype": lambda path: path.read_bytes().index(b"F32") + 1,
    "an offset": lambda path: path.read_bytes().index(b"data_offsets") + 15,
    "padding of the header": lambda path: header_end(path) - 1,
    "first byte of the tensors": header_end,
    "middle of the tensors": lambda path: (header_end(path) + path.stat().st_size) // 2,
    "last byte": lambda path: -1,
}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("shard", [0, -1])
def test_a_changed_bit_is_found_wherever_it_is(copied, name, shard):
    path = sorted((copied / "clip").glob("*.safetensors"))[shard]
    flip(path, POSITIONS[name](path))
    with pytest.raises(WeightsError) as raised:
        loading.load_component(copied, "clip")
    assert str(raised.value) == (
        f"{copied}: 1 files differ from their checksum: clip/{path.name}; "
        "convert or copy the model again"
    )


@pytest.mark.parametrize("name", ["clip/config.json", "tokenizer/tokenizer.json"])
def test_a_changed_setting_is_found_before_a_parameter_is_read(copied, name, monkeypatch):
    flip(copied / name, -3)
    monkeypatch.setattr(ModelFolder, "read_parameters", None)
    with pytest.raises(WeightsError, match=f"1 files differ from their checksum: {name};"):
        loading.load_model(copied)


def test_all_damaged_files_are_named(copied):
    paths = [sorted((copied / c).glob("*.safetensors"))[0] for c in ("clip", "t5", "vae")]
    for path in paths:
        flip(path, -1)
    with pytest.raises(WeightsError, match="3 files differ") as raised:
        loading.load_model(copied)
    for path in paths:
        assert f"{path.parent.name}/{path.name}" in str(raised.value)


def test_a_damaged_encoder_that_is_loaded_on_demand_is_found_before_anything_is_drawn(copied):
    flip(next((copied / "siglip").glob("*.safetensors")), -1)
    pipe = InstantCharacterPipeline.from_pretrained(copied, "float32", offload_encoders=True)
    for _ in range(2):
        with pytest.raises(WeightsError, match="differ from their checksum: siglip/"):
            pipe.encode_subject(np.zeros((8, 8, 3), np.uint8))
    unverified = InstantCharacterPipeline.from_pretrained(
        copied, "float32", offload_encoders=True, verify=False
    )
    assert unverified._encoders.get("siglip") != [None]


# Threads


def test_files_that_differ_are_returned_the_largest_first(tmp_path):
    listed = files(tmp_path)
    assert read_files(listed, ByteBudget(100)) == []
    for file in listed:
        flip(file.path, 60)
    for name, sha256 in (("c", "0"), ("unverified", None)):
        (tmp_path / name).write_bytes(bytes(1000))
        listed.append(FileToRead(tmp_path / name, 1000, sha256))
    assert read_files(listed, ByteBudget(100)) == [tmp_path / name for name in ("c", "a", "b")]


def test_tensors_are_used_in_the_files_order_and_behind_the_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 7)
    file, hashed, order = files(tmp_path)[0], [], []
    chunks = reading._chunks

    def counted(*arguments):
        for chunk in chunks(*arguments):
            hashed.append(len(chunk))
            yield chunk

    monkeypatch.setattr(reading, "_chunks", counted)
    uses = [(end, lambda end=end: order.append((end, sum(hashed)))) for end in (10, 55, 100)]
    assert read_files([FileToRead(file.path, 100, file.sha256, uses)], ByteBudget(1)) == []
    assert order == [(10, 10), (55, 55), (100, 100)]


@pytest.mark.parametrize("kind", [MemoryError, OSError, KeyboardInterrupt])
def test_an_error_of_a_thread_arrives_whole_and_ends_the_others(tmp_path, kind):
    first, second = files(tmp_path)
    error, go_on, used = kind("whole"), threading.Event(), []

    def fail():
        raise error

    def wait():
        used.append(1)
        go_on.wait()

    with pytest.raises(kind) as raised:
        read_files(
            [
                FileToRead(first.path, 100, None, [(50, fail)]),
                FileToRead(second.path, 100, None, [(50, wait), (100, wait)]),
            ],
            ByteBudget(1000),
        )
    go_on.set()
    assert raised.value is error
    for thread in threads():
        thread.join()
    assert len(used) <= 1


def test_an_interruption_ends_the_threads(tmp_path):
    go_on, used = threading.Event(), []

    def interrupt():
        used.append(1)
        _thread.interrupt_main()
        go_on.wait()

    with pytest.raises(KeyboardInterrupt):
        read_files(
            [FileToRead(file.path, 100, None, [(50, interrupt)] * 3) for file in files(tmp_path)],
            ByteBudget(1000),
        )
    go_on.set()
    for thread in threads():
        thread.join()
    assert len(used) <= 2


def test_a_budget_is_never_exceeded_and_a_larger_tensor_is_alone():
    budget, lock, held, sums = ByteBudget(10), threading.Lock(), [], []

    def take(count):
        for _ in range(50):
            with budget.taken(count):
                with lock:
                    held.append(count)
                    sums.append(sum(held))
                with lock:
                    held.remove(count)

    workers = [threading.Thread(target=take, args=(count,)) for count in (3, 4, 4, 5, 25)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(sums) == 250
    assert all(total <= 10 or total == 25 for total in sums)


# Arrays


def values(model):
    return {
        f"{component}.{path}": np.asarray(variable[...])
        for component in loading.COMPONENTS
        for path, variable in loading.parameters(getattr(model, component)).items()
    }


def test_the_order_of_reading_does_not_change_the_arrays(model, monkeypatch):
    together = values(loading.load_model(model))

    def backwards(listed, budget):
        for file in reversed(list(listed)):
            for _, use in reversed(file.uses):
                use()
        return []

    monkeypatch.setattr(model_folder, "read_files", backwards)
    alone = values(loading.load_model(model))
    assert together.keys() == alone.keys()
    for name, value in together.items():
        np.testing.assert_array_equal(value, alone[name])


def test_threads_load_to_the_callers_default_device(model):
    device = jax.devices()[3]
    with jax.default_device(device):
        clip = loading.load_component(model, "clip")
    assert {d for x in jax.tree.leaves(clip) for d in x.devices()} == {device}
    assert not any(x.committed for x in jax.tree.leaves(clip))
