"""Search for a MODEL folder: on disk, or on the Hugging Face Hub."""

from pathlib import Path

from ic_jax.weights.model_folder import ModelFolder


def open_model(name_or_path: ModelFolder | Path | str, revision: str | None = None) -> ModelFolder:
    """Open the MODEL folder of a path or Hub id, downloading what is not there.

    An opened folder is returned as it is.

    Raises:
        FileNotFoundError: no such folder or Hub repository, or no access to it.
        ValueError: a revision of a local folder.
        WeightsError: no MODEL folder, or an incomplete one.
    """
    if isinstance(name_or_path, ModelFolder):
        return name_or_path
    path = Path(name_or_path).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(f"{path}: a local folder has no revision; leave revision out")
        return ModelFolder.open(path)
    from ic_jax.weights import hub  # takes a third of a second, for downloads only

    if hub.REPO_ID.fullmatch(str(name_or_path)):
        return ModelFolder.open(hub.fetch_model(str(name_or_path), revision))
    raise FileNotFoundError(f"{name_or_path}: no such folder, and not a Hub id (org/name)")
