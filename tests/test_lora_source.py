"""Where a LoRA file is found: a path, a folder, a Hub repository."""

import pytest

from ic_jax.weights import hub
from ic_jax.weights.lora.source import find_lora


def put(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_a_folder_has_one_lora_file(tmp_path, monkeypatch):
    put(tmp_path, "README.md", "checkpoint-5/pytorch_lora_weights.safetensors")
    nested = tmp_path / "checkpoint-5/pytorch_lora_weights.safetensors"
    assert find_lora(tmp_path) == nested
    put(tmp_path, "ink.safetensors")
    assert find_lora(tmp_path) == tmp_path / "ink.safetensors"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_lora("~/ink.safetensors") == tmp_path / "ink.safetensors"
    put(tmp_path, "oil.safetensors")
    with pytest.raises(ValueError, match=r"has 2 files, ink\.safetensors, oil\.safetensors; name"):
        find_lora(tmp_path)
    put(tmp_path, "pytorch_lora_weights.safetensors")  # diffusers' own name
    assert find_lora(tmp_path) == tmp_path / "pytorch_lora_weights.safetensors"
    put(tmp_path, "empty/notes.txt")
    with pytest.raises(FileNotFoundError, match="has no LoRA file"):
        find_lora(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no such LoRA file or folder, and not a Hub id"):
        find_lora(tmp_path / "none.safetensors")


def test_a_repository_has_one_lora_file(tmp_path, monkeypatch):
    files, asked = ["README.md", "ink.safetensors"], []

    def fetch(repo_id, patterns, revision):
        asked.append((repo_id, revision))
        put(tmp_path, *(name for name in patterns if name in files))
        return tmp_path

    monkeypatch.setattr(hub, "file_names", lambda repo_id, revision: files)
    monkeypatch.setattr(hub, "fetch", fetch)
    assert find_lora("org/ink") == tmp_path / "ink.safetensors"
    files.append("oil.safetensors")
    with pytest.raises(ValueError, match="name one as org/ink/FILE"):
        find_lora("org/ink")
    assert find_lora("org/ink/oil.safetensors") == tmp_path / "oil.safetensors"
    with pytest.raises(FileNotFoundError, match=r"org/ink: the Hub repository has no file sea"):
        find_lora("org/ink/sea.safetensors")
    asked.clear()
    files.remove("oil.safetensors")
    for source in ("org/ink@v1.2", "org/ink@v1.2/ink.safetensors"):
        assert find_lora(source) == tmp_path / "ink.safetensors"
    assert asked == [("org/ink", "v1.2")] * 2


def test_a_repository_may_be_named_by_its_folder_in_the_cache(tmp_path):
    cached = tmp_path / "models--org--ink"
    put(cached, "snapshots/0123/ink.safetensors")
    assert find_lora(cached) == cached / "snapshots/0123/ink.safetensors"
