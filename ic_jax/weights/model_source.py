"""Search for a MODEL folder: on disk, or on the Hugging Face Hub."""

from pathlib import Path

from ic_jax.text_files import read_text
from ic_jax.untrusted_files import below
from ic_jax.weights import hub
from ic_jax.weights.model_folder import ModelFolder


def open_model(name_or_path: ModelFolder | Path | str, revision: str | None = None) -> ModelFolder:
    """Open the MODEL folder of a path or Hub id, downloading what is not there.

    Args:
        name_or_path: a path, or a repository's folder in the Hub library's cache; org/name or
            org/name@revision; or an opened folder, which is returned as it is.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        FileNotFoundError: no such folder or Hub repository, or no access to it.
        ValueError: a revision of a local folder, or two of a repository.
        WeightsError: no MODEL folder, or an incomplete one.
    """
    if isinstance(name_or_path, ModelFolder):
        return name_or_path
    path = in_hub_cache(Path(name_or_path).expanduser())
    if path.exists():
        if revision is not None:
            raise ValueError(f"{path}: a local folder has no revision; leave revision out")
        return ModelFolder.open(path)
    repo_id, _, named = str(name_or_path).partition("@")
    if hub.REPO_ID.fullmatch(repo_id):
        if named and revision is not None:
            raise ValueError(
                f"{name_or_path}: names a revision, and so does {revision!r}; give one"
            )
        return ModelFolder.open(hub.fetch_model(repo_id, named or revision))
    raise FileNotFoundError(
        f"{name_or_path}: no such folder, and not a Hub id (org/name or org/name@revision)"
    )


def in_hub_cache(path: Path) -> Path:
    """Return the files of a repository's folder in the Hub library's cache; else the path itself.

    Raises:
        FileNotFoundError: the cache holds several snapshots, none of them of the main branch.
    """
    if not (path.name.startswith("models--") and (path / "snapshots").is_dir()):
        return path
    main, snapshots = path / "refs" / "main", sorted((path / "snapshots").iterdir())
    if main.is_file():
        branch = below(path / "snapshots", read_text(main).strip())
        if branch.is_dir():
            return branch
    if len(snapshots) == 1:
        return snapshots[0]
    names = ", ".join(snapshot.name for snapshot in snapshots) or "none"
    raise FileNotFoundError(f"{path}: holds the snapshots {names}; name the folder of one")
