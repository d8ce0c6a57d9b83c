"""The compilation cache: whose folder it is, what a second start finds, what damage does."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ic_jax import compilation_cache

ROOT = Path(__file__).parent.parent
# Three programs of a command, small and quick to compile; events of JAX's cache are counted.
COMMAND = """
import collections, json, sys
import jax, jax.numpy as jnp
from ic_jax import cli, compilation_cache

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.split("/")[-1]]))

def command():
    compilation_cache.enable()
    x = jnp.arange(1.0, 5.0)
    print(*(float(jax.jit(reduce)(x)) for reduce in (jnp.sum, jnp.prod, jnp.max)))

code = cli.run(command)
print(json.dumps([counts[e] for e in ("compile_requests_use_cache", "cache_hits")]))
sys.exit(code)
"""


@pytest.fixture
def no_folder(monkeypatch):
    """JAX as it starts, with no folder for its cache."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_private(no_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.enable()
    folder = Path(jax.config.values["jax_compilation_cache_dir"])
    assert folder.parent == tmp_path / "ic_jax"
    status = folder.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, os.getuid())
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 0


def test_nothing_is_kept_where_others_can_write(no_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.enable()
    Path(jax.config.values["jax_compilation_cache_dir"]).chmod(0o770)
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.warns(UserWarning, match="others can write to .*; make it yours alone, and remove"):
        compilation_cache.enable()
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_nothing_is_kept_where_others_could_exchange_folder_or_program(
    no_folder, tmp_path, monkeypatch
):
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    compilation_cache.enable()
    folder = Path(jax.config.values["jax_compilation_cache_dir"])
    planted = folder / "jit_step-cache"
    planted.touch(0o666)
    planted.chmod(0o666)

    def refuses(path):
        jax.config.update("jax_compilation_cache_dir", None)
        with pytest.warns(UserWarning, match=f"others can write to {path}; .*remove {folder}"):
            compilation_cache.enable()
        assert jax.config.values["jax_compilation_cache_dir"] is None

    refuses(planted)
    planted.chmod(0o600)
    shared.chmod(0o777)
    refuses(shared)
    shared.chmod(0o1777)  # as /tmp: others cannot exchange what is not theirs
    compilation_cache.enable()
    assert jax.config.values["jax_compilation_cache_dir"] == str(folder)


@pytest.mark.parametrize("place", ["/proc/cache", "{file}"])
def test_a_place_that_cannot_be_written_is_a_warning(place, no_folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", place.format(file=tmp_path / "file"))
    with pytest.warns(UserWarning, match="compiled programs are not kept: .*ic_jax"):
        compilation_cache.enable()
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_a_folder_that_is_named_is_taken(no_folder, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.enable()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)


def test_processors_that_differ_share_nothing(tmp_path):
    names = []
    for i, text in enumerate(["flags\t: fpu avx2\n", "flags\t: fpu\n", "Features\t: sve\n", ""]):
        cpuinfo = tmp_path / str(i)
        cpuinfo.write_text(f"processor : 0\nbogomips : {i}\n{text}")
        names.append(compilation_cache._processor(cpuinfo))
        cpuinfo.write_text(f"processor : 1\n{text}")
        assert compilation_cache._processor(cpuinfo) == names[-1]
    assert len(set(names)) == 4
    assert compilation_cache._processor(tmp_path / "none") == names[-1]  # the machine's name


def test_a_second_start_compiles_nothing_and_damage_heals(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def start():
        """Return the result, the cache's (requests, hits), and the warnings."""
        run = subprocess.run(
            [sys.executable, "-c", COMMAND],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        result, counts = run.stdout.splitlines()
        return result, json.loads(counts), run.stderr.splitlines()

    result, (requests, hits), warnings = start()
    assert (requests >= 3, hits, warnings) == (True, 0, [])
    assert start() == (result, [requests, requests], [])
    entries = [*tmp_path.glob("ic_jax/xla-*/*-cache")]
    assert len(entries) == requests
    entries[0].write_bytes(entries[0].read_bytes()[:30])
    again, counts, (warning,) = start()
    assert (again, counts) == (result, [requests, requests - 1])
    assert warning.endswith("was damaged; it is compiled and written anew")
    assert start() == (result, [requests, requests], [])
