"""Compiled programs as files: what is read back, what is compiled anew, whom they are read from."""

import pickle
import warnings
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import program_file, programs, sampler
from ic_jax.programs import Program, kept_in
from ic_jax.sharding import make_mesh, parse, shardings
from tests.test_sharding import models, request  # noqa: F401, the module's small FLUX

X = np.arange(32, dtype=np.float32).reshape(8, 4)


def jax_keeps(folder, seconds):
    """Let JAX's own cache be there, for programs that take so long to compile."""
    jax.config.update("jax_compilation_cache_dir", folder and str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def no_cache_of_jax():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [jax.config.values[name] for name in names]
    jax_keeps(None, 0.0)
    yield
    jax_keeps(*before)


class Start:
    """A start of a program: nothing is in memory, and every trace is counted."""

    def __init__(self, folder):
        self.folder, self.traced = folder, 0

        def scaled(tree, times):
            self.traced += 1
            return {"sum": tree["x"].sum(0), "scaled": (times * tree["x"], tree["unused"])}

        self.program = Program(scaled, static=("times",))

    def run(self, x=X, times=3, mesh=None):
        with kept_in(self.folder):
            given = {"x": x, "unused": jnp.zeros(3)}
            if mesh is None:
                return self.program(given, times=times)
            with jax.set_mesh(mesh):
                given = jax.device_put(given, NamedSharding(mesh, P()))
                given["x"] = jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"))))
                return self.program(given, times=times)


def check(result, times=3):
    np.testing.assert_array_equal(result["sum"], X.sum(0))
    np.testing.assert_array_equal(result["scaled"][0], times * X)


def files(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("text", [None, "data=1", "data=4", "data=2,tensor=4"])
def test_a_second_start_traces_nothing(tmp_path, text):
    mesh = text and make_mesh(parse(text))
    first, second = Start(tmp_path / "own"), Start(tmp_path / "own")
    one, two = first.run(mesh=mesh), second.run(mesh=mesh)
    check(one)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert [x.sharding for x in jax.tree.leaves(one)] == [x.sharding for x in jax.tree.leaves(two)]
    second.run(mesh=mesh)
    assert (first.traced, second.traced) == (1, 0)
    (name,) = files(tmp_path / "own")
    assert name.startswith("scaled-")
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700


def test_what_decides_a_program_is_told_apart(tmp_path):
    mesh = make_mesh(parse("data=4"))
    turned = jax.sharding.Mesh(mesh.devices[::-1], mesh.axis_names, axis_types=mesh.axis_types)
    other = jax.device_put(X, jax.devices()[3])
    different = [
        {},
        {"times": 5},
        {"x": X[:4]},
        {"x": X.astype(np.int32)},
        {"x": other},
        {"mesh": mesh},
        {"mesh": turned},
    ]
    start = Start(tmp_path)
    for arguments in different:
        start.run(**arguments)
    assert len(files(tmp_path)) == len(different)
    second = Start(tmp_path)
    check(second.run(times=5), times=5)
    assert second.run(x=other)["sum"].devices() == {jax.devices()[3]}
    check(second.run(mesh=turned))
    assert second.traced == 0


def test_another_source_or_setting_replaces_the_file(tmp_path, monkeypatch):
    Start(tmp_path).run()
    (name,) = files(tmp_path)
    monkeypatch.setattr(program_file, "_source", lambda package: f"{package} changed")
    before = (tmp_path / name).read_bytes()
    second, third = Start(tmp_path), Start(tmp_path)
    check(second.run())
    check(third.run())
    assert (second.traced, third.traced) == (1, 0)
    with jax.default_matmul_precision("float32"):
        fourth = Start(tmp_path)
        fourth.run()
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=nowhere")
    fifth = Start(tmp_path)
    fifth.run()
    assert (fourth.traced, fifth.traced) == (1, 1)
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() != before


def resealed(data):
    """A file whose digest is right and whose program is not."""
    import hashlib
    import json

    head, _, _ = data.partition(b"\n")
    payload = pickle.dumps((b"no program", None))
    header = json.loads(head) | {"sha256": hashlib.sha256(payload).hexdigest()}
    return json.dumps(header).encode() + b"\n" + payload


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:200],
        lambda data: data[:-1],
        lambda data: data[:-200] + bytes([data[-200] ^ 1]) + data[-199:],
        lambda data: b"[]\n",
        resealed,
    ],
)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    Start(tmp_path).run()
    (name,) = files(tmp_path)
    file = tmp_path / name
    file.write_bytes(damage(file.read_bytes()))
    second, third = Start(tmp_path), Start(tmp_path)
    with pytest.warns(UserWarning, match="was damaged; it is removed and made anew"):
        check(second.run())
    check(third.run())
    assert (second.traced, third.traced) == (1, 0)
    assert files(tmp_path) == [name]


def test_nothing_is_read_from_where_others_can_write(tmp_path, monkeypatch):
    Start(tmp_path).run()
    monkeypatch.setattr(pickle, "loads", None)
    for mode in (0o770, 0o707):
        tmp_path.chmod(mode)
        second = Start(tmp_path)
        with pytest.warns(UserWarning, match="others can write there; make it yours alone"):
            check(second.run())
        assert second.traced == 1
    tmp_path.chmod(0o700)
    monkeypatch.setattr(programs.os, "getuid", lambda: 12345)
    with pytest.warns(UserWarning, match="others can write there"):
        check(Start(tmp_path).run())


def add(state, x, rule):
    return jax.tree.map(lambda s: rule.times * s + x.sum(), state), x.sum()


@dataclass(frozen=True)
class Rule:
    times: float


def step(mesh, spec):
    """A start of a program that gives up its state, and where that lies."""
    place = NamedSharding(mesh, spec)
    return Program(add, static=("rule",), donate=(0,), out_shardings=((place, place), None)), place


@pytest.mark.parametrize("spec", [P(), P("data"), P("data", "tensor")])
def test_what_is_donated_is_gone_and_its_memory_taken(tmp_path, spec):
    mesh, found = make_mesh(parse("data=4,tensor=2")), []
    for _ in range(2):  # compiled, then read
        program, place = step(mesh, spec)
        with kept_in(tmp_path), jax.set_mesh(mesh):
            state = jax.device_put((X, 2 * X), place)
            for _ in range(2):
                before, (state, _) = state, program(state, jnp.ones(3), rule=Rule(0.5))
                assert all(x.is_deleted() for x in before)
        assert {x.sharding for x in state} == {place}
        found.append(state)
    jax.tree.map(np.testing.assert_array_equal, *found)
    np.testing.assert_array_equal(found[1][0], (X / 2 + 3) / 2 + 3)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("spec", [P(), P("data"), P("data", "tensor")])
def test_a_program_that_fails_takes_no_state_with_it(tmp_path, monkeypatch, spec):
    """It ran, its arguments are gone, and then the devices said that it failed."""
    mesh = make_mesh(parse("data=4,tensor=2"))
    load = serialize_executable.deserialize_and_load

    def loaded(*given, **named):
        program = load(*given, **named)

        def failing(*arguments):
            jax.block_until_ready(program(*arguments))
            raise jax.errors.JaxRuntimeError("INTERNAL: Symbols not found")

        return failing

    for start in range(2):
        program, place = step(mesh, spec)
        with kept_in(tmp_path), jax.set_mesh(mesh):
            state = jax.device_put((X, 2 * X), place)
            if start == 0:
                state, _ = program(state, jnp.ones(3), rule=Rule(2.0))
                continue
            ones = jnp.ones(3)
            monkeypatch.setattr(serialize_executable, "deserialize_and_load", loaded)
            with (
                pytest.warns(UserWarning, match="was damaged; it is removed"),
                jax.transfer_guard("disallow"),
            ):
                state, _ = program(state, ones, rule=Rule(2.0))
        np.testing.assert_array_equal(state[1], 2 * (2 * X) + 3)
        assert {x.sharding for x in state} == {place}


def test_a_closure_is_not_kept(tmp_path):
    """Another number would have the same name."""

    def times(number):
        return lambda x: number * x

    with kept_in(tmp_path):
        for number in (2.0, 3.0):
            program = Program(called, static=("function",))
            # This one is of a module, and its number is printed.
            np.testing.assert_array_equal(program(X, function=partial(scaled, number)), number * X)
            with pytest.warns(UserWarning, match=r"times.<locals>.<lambda> at 0x\w+ cannot be"):
                found = program(X, function=times(number))
            np.testing.assert_array_equal(found, number * X)
    assert len(files(tmp_path)) == 2


def called(x, function):
    return function(x)


def scaled(number, x):
    return number * x


def test_a_folder_that_cannot_be_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="no programs are kept"):
        check(Start(tmp_path / "file" / "folder").run())


def test_a_platform_that_cannot_serialise_compiles(tmp_path, monkeypatch):
    def refuse(_):
        raise ValueError("Compilation does not support serialization")

    monkeypatch.setattr(serialize_executable, "serialize", refuse)
    with pytest.warns(UserWarning, match="is not kept .Compilation does not support"):
        check(Start(tmp_path).run())
    assert not files(tmp_path)


def test_what_jax_read_from_its_own_cache_is_not_written(tmp_path):
    """A CPU's program that was read once cannot be written again: it would fail when it runs."""
    jax_keeps(tmp_path / "jax", 0.0)
    Start(tmp_path / "one").run()
    Start(tmp_path / "two").run()
    assert [len(files(tmp_path / name)) for name in ("one", "two")] == [1, 0]


def test_sampling_on_a_mesh_is_kept(models, tmp_path):  # noqa: F811
    mesh = make_mesh(parse("fsdp=2,tensor=2,context=2"))
    spread = jax.device_put(models, shardings(models, mesh))
    drawn = []
    with warnings.catch_warnings(), kept_in(tmp_path), jax.set_mesh(mesh):
        warnings.simplefilter("error")
        for _ in range(2):
            drawn.append(Program(sampler.sample)(*spread, request(2)))
    np.testing.assert_array_equal(*drawn)
    assert len(files(tmp_path)) == 1
