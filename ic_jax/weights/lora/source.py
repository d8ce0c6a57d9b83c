"""The one LoRA file of a path, a folder or a Hub repository."""

from pathlib import Path

from ic_jax.from_dict import first_few
from ic_jax.weights import hub
from ic_jax.weights.model_source import in_hub_cache

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"  # in a folder that diffusers saves
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
SUFFIX = ".safetensors"


def find_lora(source: Path | str) -> Path:
    """Return the LoRA file of a source, downloading what is not there.

    Args:
        source: a file; a folder or the Hub id of a repository, org/name or org/name@revision,
            with one LoRA file; or org/name/FILE for one of several.

    Raises:
        FileNotFoundError: there is no such file, or no LoRA file in it, or the Hub refuses.
        ValueError: there are several LoRA files; the message names them.
    """
    path = in_hub_cache(Path(source).expanduser())
    if path.is_file():
        return path
    if path.is_dir():
        names = sorted(x.relative_to(path).as_posix() for x in path.rglob(f"*{SUFFIX}"))
        return path / _chosen(str(source), names)
    if named := hub.split_source(str(source), SUFFIX):
        repo_id, revision, file = named
        if file is None:
            names = [x for x in hub.file_names(repo_id, revision) if x.endswith(SUFFIX)]
            file = _chosen(str(source), sorted(names))
        return _fetched(repo_id, revision, file)
    raise FileNotFoundError(
        f"{source}: no such LoRA file or folder, and not a Hub id (org/name or org/name/FILE)"
    )


def _fetched(repo_id: str, revision: str | None, name: str) -> Path:
    folder = hub.fetch(repo_id, [name, PEFT_FILES[1]], revision)
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{repo_id}: the Hub repository has no file {name}")
    return folder / name


def _chosen(source: str, names: list[str]) -> str:
    top = [name for name in names if "/" not in name] or names
    for known in (DIFFUSERS_FILE, PEFT_FILES[0]):
        if known in top:
            return known
    if not top:
        raise FileNotFoundError(f"{source}: has no LoRA file (*{SUFFIX})")
    if len(top) > 1:
        raise ValueError(
            f"{source}: has {len(top)} files, {first_few(top)}; name one as {source}/FILE"
        )
    return top[0]
