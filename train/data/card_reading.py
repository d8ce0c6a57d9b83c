"""Reading of a data set's card, which anyone may have written."""

from pathlib import Path
from typing import Any

from ic_jax.untrusted_files import files_below, read_json
from train.data.card import CARD, CHECKSUM, INDEX, checksum
from train.data.errors import DataError

MAX_CARD = 2**28  # bytes; a million shards take less
AGAIN = "copy the data set again"


def read_card(path: Path) -> dict[str, Any]:
    """Return the contents of a data set's card.json; the files that it names lie in the folder.

    Raises:
        DataError: there is no card, or what a run reads of it is missing or of another type.
    """
    file = path / CARD
    try:
        card = read_json(file, limit=MAX_CARD)
    except OSError:
        partial = path.with_name(path.name + ".partial")
        hint = "run the same command again to finish it" if partial.exists() else "check the path"
        raise DataError(
            f"{path}: is not a data set of `python -m train prepare` (it has no {CARD}); {hint}"
        ) from None
    except ValueError as error:
        raise DataError(f"{error}; {AGAIN}") from None
    if not isinstance(card, dict):
        raise DataError(f"{file}: is no JSON object; {AGAIN}")
    for name in ("pictures", "characters", "in_pairs"):
        _count(file, card, name)
    if "written" not in card:  # a data set of an earlier version tells the sizes of its index alone
        sizes = card.get("index")
        sizes = sizes if isinstance(sizes, dict) else {}
        card["written"] = [{"file": f"{INDEX}/{n}", "bytes": s} for n, s in sizes.items()]
    for name in ("shards", "written"):
        _files(path, card, name)
    records = sum(_count(file, shard, "records") for shard in card["shards"])
    if records != card["pictures"]:
        raise DataError(
            f"{file}: its shards have {records} records, and it says {card['pictures']} pictures; "
            f"{AGAIN}"
        )
    own = checksum(card)
    if card.get(CHECKSUM, own) != own:  # earlier versions have none
        raise DataError(f"{file}: differs from its checksum; {AGAIN}")
    return card


def _count(file: Path, values: dict[str, Any], name: str) -> int:
    value = values.get(name)
    if type(value) is not int or not 0 <= value < 2**40:
        raise DataError(f"{file}: {name} is {value!r:.50}, not a number of them; {AGAIN}")
    return value


def _files(path: Path, card: dict[str, Any], name: str) -> None:
    """Raise DataError unless card[name] lists files of the folder with their sizes."""
    files = card.get(name)
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise DataError(f"{path / CARD}: {name} is no list of files; {AGAIN}")
    path_of = files_below(path)
    for file in files:
        _count(path / CARD, file, "bytes")
        if not isinstance(file.get("file"), str):
            raise DataError(f"{path / CARD}: a file of {name} has no name; {AGAIN}")
        try:
            path_of(file["file"])
        except ValueError as error:
            raise DataError(f"{path / CARD}: {error}") from None
        if not isinstance(file.get("sha256", ""), str):
            raise DataError(f"{path / CARD}: {file['file']} has no checksum; {AGAIN}")
