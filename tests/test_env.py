"""`python -m infer env`: what a report of an issue tells, and what it does not."""

import json

import jax
import pytest

from infer import env_command
from infer.commands import main


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "ana"
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
    of_tests = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield folder
    jax.config.update("jax_compilation_cache_dir", of_tests)


def test_tells_versions_devices_and_caches(home, capsys):
    programs = env_command.compilation_cache.default_folder()
    programs.mkdir(parents=True)
    (programs / "a-cache").write_bytes(bytes(2_000_000))
    assert main(["env", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["versions"]["jax"] == jax.__version__
    assert told["devices"]["count"] == 8
    assert told["caches"]["compiled programs"].startswith("~/.cache/ic_jax/xla-")
    assert told["caches"]["compiled programs"].endswith(": 1 files, 2.0 MB")
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert f"  jax: {jax.__version__}\n" in text


def test_tells_no_user_and_no_secret(home, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(home / "programs"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/scratch/ana/dump")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node7:1234")
    monkeypatch.setenv("HF_HUB_CACHE_TOKEN", "hf_secret")
    told = env_command.environment()
    assert told["variables"]["JAX_COMPILATION_CACHE_DIR"] == "~/programs"
    assert told["variables"]["XLA_FLAGS"] == "--xla_dump_to=/scratch/USER/dump"
    text = json.dumps(told)
    for private in ("/ana", "node7", "hf_secret"):
        assert private not in text


def test_a_device_that_is_not_found_is_told(home, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu':\nthe TPU is in use")

    monkeypatch.setattr(jax, "local_devices", fail)
    error = {"error": "Unable to initialize backend 'tpu': the TPU is in use"}
    assert env_command.environment()["devices"] == error


def test_extras_say_what_they_lack(monkeypatch):
    requirements = ["jax[tpu]; extra == 'tpu'", "no-such; extra == 'train'", "numpy>=2", "jax>=0.1"]
    requirements += ['numpy>=2; extra == "train"', "numpy; extra == 'heic'"]
    monkeypatch.setattr(env_command.metadata, "requires", lambda _: requirements)
    assert env_command._extras() == {"heic": "complete", "train": "lacks no-such"}
