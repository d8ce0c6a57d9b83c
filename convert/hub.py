"""Fetching published weights from the Hugging Face Hub by their id."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import errors, snapshot_download


def fetch(name: str, patterns: Sequence[str]) -> Path:
    """The local folder of the Hub repository `name` (org/name), files matching `patterns` only.

    Raises:
        FileNotFoundError: no such repository, no access to it, or no connection.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except errors.GatedRepoError:
        reason = (
            f"is gated: accept its licence at https://huggingface.co/{name}, then log in with "
            "`hf auth login` (`huggingface-cli login` in older versions)"
        )
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
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = f"the download broke off ({what}); run again, what came is kept"
    raise FileNotFoundError(f"{name}: {reason}")
