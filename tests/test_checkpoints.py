"""Checkpoints: saving and restoring, quarantine of damaged ones, refusal of other runs."""

import errno
import json
import resource
import shutil
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.config import ConfigError
from tests.data_source import contents
from train.checkpoints import CheckpointError, Checkpoints, _without_closed_loops
from train.recipe import Saving
from train.step import TrainState

FACTS = {"seed": 1, "adapter": {"dim": 3, "layers": (1, 2)}}


def state(step):
    return {"w": jnp.arange(6.0).reshape(2, 3) * step, "m": [jnp.full(4, step, jnp.bfloat16)]}


def abstract():
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state(1))


def saved(run, *steps, **saving):
    checkpoints = Checkpoints(run, Saving(**saving))
    for step in steps:
        checkpoints.save(step, state(step), FACTS)
    checkpoints.close()


def resumed(run):
    checkpoints = Checkpoints(run, Saving())
    try:
        step = checkpoints.latest
        return step, None if step is None else checkpoints.restore(abstract(), FACTS)
    finally:
        checkpoints.close()


def test_the_newest_comes_back_bit_for_bit(tmp_path):
    saved(tmp_path, 5, 10)
    step, values = resumed(tmp_path)
    assert step == 10
    jax.tree.map(np.testing.assert_array_equal, values, state(10))


def test_reading_leaves_everything_as_it_is_and_says_nothing(tmp_path, caplog):
    saved(tmp_path, 5, 10, keep_every=5)
    (tmp_path / "checkpoints" / "15.orbax-checkpoint-tmp-1").mkdir()  # a save in progress
    before = contents(tmp_path)
    caplog.clear()
    checkpoints = Checkpoints(tmp_path, Saving(keep=1), read_only=True)
    values = checkpoints.restore(abstract(), FACTS, 5)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, values, state(5))
    assert contents(tmp_path) == before
    assert not [x.message for x in caplog.records if x.levelname == "WARNING"]


def test_kept_by_count_and_by_interval(tmp_path):
    saved(tmp_path, 5, 10, 15, 20, 25, keep=2, keep_every=10)
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"10", "20", "25"}
    assert {p.stem for p in (tmp_path / "manifests").iterdir()} == names


class OldState(NamedTuple):
    trained: Any
    average: Any
    optimizer: Any
    step: Any
    bad: Any


def test_older_names_of_the_state_are_read(tmp_path):
    old = OldState(state(1), state(2), [state(3), jnp.int32(4)], jnp.int32(5), jnp.int32(0))
    checkpoints = Checkpoints(tmp_path, Saving())
    checkpoints.save(5, old, FACTS)
    checkpoints.wait()
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), old)
    new = checkpoints.restore(TrainState(*shapes), FACTS)
    checkpoints.close()
    assert isinstance(new, TrainState)
    jax.tree.map(np.testing.assert_array_equal, new, TrainState(*old))


def flip_a_bit(folder):
    file = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def remove_a_file(folder):
    next(p for p in folder.rglob("*") if p.is_file()).unlink()


def truncate(folder):
    for p in folder.rglob("*"):
        if p.is_file():
            p.write_bytes(p.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_a_bit, remove_a_file, truncate])
def test_a_damaged_newest_step_is_replaced_by_the_one_before(tmp_path, damage):
    saved(tmp_path, 5, 10)
    damage(tmp_path / "checkpoints" / "10")
    with pytest.warns(UserWarning, match="moved to"):
        step, values = resumed(tmp_path)
    assert step == 5
    jax.tree.map(np.testing.assert_array_equal, values, state(5))
    assert (tmp_path / "quarantine" / "10.0").is_dir()


def test_a_step_without_manifest_or_files_is_not_trusted(tmp_path):
    saved(tmp_path, 5, 10)
    (tmp_path / "manifests" / "10.json").unlink()
    (tmp_path / "checkpoints" / "15").mkdir()  # what a crash of Orbax can leave
    with pytest.warns(UserWarning, match="moved to"):
        step, _ = resumed(tmp_path)
    assert step == 5
    saved(tmp_path, 12)  # and training goes on from there
    assert resumed(tmp_path)[0] == 12


def test_a_run_whose_checkpoints_are_all_damaged_begins_anew_only_when_told(tmp_path):
    saved(tmp_path, 5, 10)
    with pytest.raises(CheckpointError, match="step 10 is whole; leave out --restart"):
        Checkpoints(tmp_path, Saving(), restart=True)
    for step in ("5", "10"):
        flip_a_bit(tmp_path / "checkpoints" / step)
    for _ in range(2):  # the first refusal changes nothing
        with pytest.raises(CheckpointError, match=r"none of the checkpoints is whole.*--restart"):
            Checkpoints(tmp_path, Saving())
    with pytest.warns(UserWarning, match="moved to"):
        checkpoints = Checkpoints(tmp_path, Saving(), restart=True)
    assert checkpoints.latest is None
    checkpoints.close()
    saved(tmp_path, 5)
    assert resumed(tmp_path)[0] == 5


def test_a_run_that_was_killed_in_its_first_save_begins_anew_by_itself(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.warns(UserWarning, match="moved to"):
        assert resumed(tmp_path) == (None, None)


def test_a_step_under_another_number_is_not_taken_with_its_manifest(tmp_path):
    saved(tmp_path, 5)
    shutil.copytree(tmp_path / "checkpoints" / "5", tmp_path / "checkpoints" / "900")
    shutil.copy(tmp_path / "manifests" / "5.json", tmp_path / "manifests" / "900.json")
    with pytest.warns(UserWarning, match="900.* moved to"):
        assert resumed(tmp_path)[0] == 5


def test_a_manifest_of_digests_alone_is_read(tmp_path):
    saved(tmp_path, 5)
    manifest = tmp_path / "manifests" / "5.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())["files"]))
    assert resumed(tmp_path)[0] == 5


def test_quarantine_keeps_the_last_two(tmp_path):
    saved(tmp_path, 5)
    for step in range(6, 10):
        (tmp_path / "checkpoints" / str(step)).mkdir()
        with pytest.warns(UserWarning, match="moved to"):
            assert resumed(tmp_path)[0] == 5
    assert {path.name for path in (tmp_path / "quarantine").iterdir()} == {"8.0", "9.0"}


def test_a_save_that_does_not_fit_is_an_error_of_the_system_that_names_the_folder(tmp_path, caplog):
    saved(tmp_path, 5)
    large = {"w": np.random.default_rng(0).standard_normal(200_000, np.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        checkpoints = Checkpoints(tmp_path, Saving())
        checkpoints.save(10, large, FACTS)
        with pytest.raises(OSError, match="checkpoints") as caught:
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert "Traceback" not in caplog.text
    assert resumed(tmp_path)[0] == 5


def test_a_full_disk_is_told_once(tmp_path, monkeypatch):
    """With the folder's name, whichever of Orbax's files it meets, and no traceback of a thread."""
    checkpoints = Checkpoints(tmp_path, Saving())

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")  # as etils raises it: no name

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "wait_until_finished", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*checkpoints'"):
            checkpoints.save(5, state(5), FACTS)
    checkpoints.close()
    shown = []
    hook = _without_closed_loops(shown.append)
    errors = [SimpleNamespace(exc_value=RuntimeError(x)) for x in ("Event loop is closed", "other")]
    for error in errors:
        hook(error)
    assert shown == errors[1:]


def test_room_for_a_checkpoint_is_asked_for(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, Saving())
    checkpoints.check_room(state(1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 3e6))
    with pytest.raises(OSError, match=r"12.0 MB needed, 3.0 MB free; make room"):
        checkpoints.check_room({"w": np.zeros(3_000_000, np.float32)})
    checkpoints.close()


def test_nothing_saved_is_nothing_to_resume(tmp_path):
    assert resumed(tmp_path) == (None, None)


def test_another_run_is_refused_by_name(tmp_path):
    saved(tmp_path, 5)
    checkpoints = Checkpoints(tmp_path, Saving())
    with pytest.raises(ConfigError, match="seed was 1 and is now 2"):
        checkpoints.restore(abstract(), FACTS | {"seed": 2})
    checkpoints.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": jax.ShapeDtypeStruct((2, 4), jnp.float32)}, r"was float32\[2, 3\] and is now"),
        ({"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}, r"now bfloat16\[2, 3\]"),
        ({"x": jax.ShapeDtypeStruct((2, 3), jnp.float32)}, "was None and is now"),
    ],
)
def test_other_shapes_and_types_are_refused(tmp_path, change, message):
    saved(tmp_path, 5)
    checkpoints = Checkpoints(tmp_path, Saving())
    with pytest.raises(ConfigError, match=message):
        checkpoints.restore(abstract() | change, FACTS)
    checkpoints.close()
