"""Models and published weights from the Hugging Face Hub, by their id.

The Hub's library is imported where it is used: it takes a third of a second, for downloads only.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ic_jax.version import __version__
from ic_jax.weights.model_folder import COMPONENT_NAMES, MANIFEST, not_converted

T = TypeVar("T")
REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # org/name

LOG_IN = "the Hub does not know you (401); log in with `hf auth login`, or set HF_TOKEN"
MAY_NOT_WRITE = (
    "you may not write there (403); name a repository of your own, and take a token that may "
    "write from https://huggingface.co/settings/tokens"
)


class UploadError(OSError):
    """An upload that the Hub refused or that broke off; the message is one line."""


def split_source(source: str, suffix: str) -> tuple[str, str | None, str | None] | None:
    """Return repository, revision and file of org/name, with @revision and /FILE or without.

    Args:
        source: what a user names.
        suffix: ending of the file.

    Returns:
        None if `source` has another form.
    """
    pattern = rf"({REPO_ID.pattern})(?:@([\w.-]+))?(?:/(.+{re.escape(suffix)}))?"
    named = re.fullmatch(pattern, source)
    return None if named is None else (named[1], named[2], named[3])


def fetch(repo_id: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Download the files of a Hub repository that match `patterns`; return their local folder.

    Files in the Hub library's cache are not downloaded again, and are enough offline.

    Args:
        repo_id: org/name.
        patterns: of file names, as in `fnmatch`.
        revision: branch, tag or commit; the main branch by default.

    Raises:
        FileNotFoundError: no such repository or revision, no access to it, or no connection.
    """
    from huggingface_hub import snapshot_download

    return _answered(
        repo_id,
        revision,
        lambda: Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns))),
    )


def file_names(repo_id: str, revision: str | None = None) -> list[str]:
    """Return the names of a repository's files; those in the cache where the Hub is not reached.

    Args:
        revision: as for `fetch`.

    Raises:
        FileNotFoundError: as for `fetch`.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        return _answered(
            repo_id, revision, lambda: HfApi().list_repo_files(repo_id, revision=revision)
        )
    except FileNotFoundError:
        try:
            folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
        except Exception:  # nothing of it is in the cache: what the Hub said counts
            folder = None
        if folder is None:
            raise
        return [x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file()]


def _answered(repo_id: str, revision: str | None, ask: Callable[[], T]) -> T:
    """Return what `ask` returns; FileNotFoundError, in one line, for what the Hub answers."""
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError:
        reason = (
            f"is gated: accept its licence at https://huggingface.co/{repo_id}, then log in with "
            "`hf auth login` (`huggingface-cli login` in older versions)"
        )
    except errors.RevisionNotFoundError:
        reason = f"the Hub repository has no revision {revision}; name a branch, tag or commit"
    except errors.RepositoryNotFoundError:
        reason = (
            "no such path here and no such repository on the Hub; if it is private, log in with "
            "`hf auth login` (`huggingface-cli login` in older versions)"
        )
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        reason = "no such path here, and the Hugging Face Hub cannot be reached; download it first"
    except errors.HfHubHTTPError as error:
        reason = f"the Hugging Face Hub answered: {str(error).splitlines()[0]}"
    except Exception as error:  # of the network library underneath, which changes with versions
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = f"the download broke off ({cause}); run again, finished files are kept"
    raise FileNotFoundError(f"{repo_id}: {reason}")


def fetch_model(repo_id: str, revision: str | None = None) -> Path:
    """Download a MODEL folder from the Hub; return its local folder.

    The manifest comes first: a repository without one is refused before its weights, which may
    be published ones of many gigabytes, are downloaded.

    Raises:
        FileNotFoundError: as for `fetch`.
        WeightsError: the repository is no MODEL folder; the message says how to convert it.
    """
    folder = fetch(repo_id, [MANIFEST], revision)
    if not (folder / MANIFEST).is_file():
        raise not_converted(repo_id)
    # A snapshot's folder is named after its commit, so both downloads are of one revision.
    return fetch(repo_id, [MANIFEST, *(f"{name}/*" for name in COMPONENT_NAMES)], folder.name)


def reserve(repo_id: str, *, private: bool) -> str:
    """Create a repository unless it exists, so that a refusal comes before any work.

    Returns:
        Its address.

    Raises:
        ValueError: `repo_id` is no org/name.
        UploadError: the Hub refuses, or cannot be reached.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise ValueError(f"{repo_id}: is no Hub id; write org/name")
    return str(
        _accepted(repo_id, lambda: _api().create_repo(repo_id, private=private, exist_ok=True))
    )


def push(folder: Path, repo_id: str, *, private: bool, commit_message: str | None = None) -> str:
    """Upload a folder as one commit; return the repository's address.

    Of a MODEL folder, component files of an earlier upload that are not in it are deleted.

    Raises:
        UploadError: the Hub refuses, or cannot be reached.
    """
    url = reserve(repo_id, private=private)
    is_model = (folder / MANIFEST).is_file()
    _accepted(
        repo_id,
        lambda: _api().upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            delete_patterns=[f"{name}/*" for name in COMPONENT_NAMES] if is_model else None,
        ),
    )
    return url


def _api() -> Any:
    """Return an HfApi that says who asks."""
    from huggingface_hub import HfApi

    return HfApi(library_name="ic_jax", library_version=__version__)


def _accepted(repo_id: str, upload: Callable[[], T]) -> T:
    """Return what `upload` returns; UploadError, in one line, for what the Hub answers."""
    from huggingface_hub import errors

    try:
        return upload()
    except errors.LocalTokenNotFoundError:
        reason = LOG_IN
    except (errors.OfflineModeIsEnabled, ConnectionError):
        reason = "the Hugging Face Hub cannot be reached; connect, and unset HF_HUB_OFFLINE"
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        answer = f"the Hugging Face Hub answered: {str(error).splitlines()[0]}"
        reason = {401: LOG_IN, 403: MAY_NOT_WRITE}.get(status, answer)  # type: ignore[arg-type]
    except Exception as error:  # of the network library underneath, which changes with versions
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = f"the upload broke off ({cause})"
    raise UploadError(f"{repo_id}: {reason}")
