"""What frozen encoders make of a data set, kept on disk: a few arrays for every record.

    FOLDER/facts.json                what it was made of and with; written first
    FOLDER/shard-00000.safetensors   64 records each, named RECORD/FIELD
    FOLDER/manifest.json             every shard's size and SHA-256; written last

The folder appears whole, at the end; until then its work stands in FOLDER.partial.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ic_jax.files import atomic_folder, sha256_file, write_json
from ic_jax.weights.safetensors_io import Spec, read_tensors, write_file
from ic_jax.weights.tensors import Tensor
from train.data.errors import DataError

FACTS, MANIFEST = "facts.json", "manifest.json"
ROWS = 64  # records of a shard; 300 MB of FLUX's text embeddings
OPEN = 256  # shards whose headers are kept in memory
ON_DISK = {"std": "deviation"}  # fields whose name in the files differs


class Embeddings(NamedTuple):
    """What the text encoders make of prompts; without b, of one."""

    t5: Float[Array, "*b t e"]
    pooled: Float[Array, "*b p"]


class LatentPosterior(NamedTuple):
    """Normal distribution of FLUX's latents of pictures; without b, of one."""

    mean: Float[Array, "*b y x c"]
    std: Float[Array, "*b y x c"]


class EncodedRows:
    """A folder with one named tuple of arrays for each of some records."""

    def __init__(
        self, folder: Path, kind: Any, records: np.ndarray, facts: Mapping[str, Any]
    ) -> None:
        """Nothing is read yet.

        Args:
            kind: `Embeddings` or `LatentPosterior`.
            records: their numbers, ascending.
            facts: JSON values that the arrays follow from; a folder with others is refused.
        """
        self.folder, self.kind, self.records, self.facts = folder, kind, records, dict(facts)
        self._shard = lru_cache(maxsize=OPEN)(self._opened)

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedRows, (self.folder, self.kind, self.records, self.facts)

    def check(self) -> None:
        """DataError unless the folder is there, whole and made with the same facts."""
        again = "run `python -m train cache` with this recipe"
        try:
            found = json.loads((self.folder / FACTS).read_text())
            shards = json.loads((self.folder / MANIFEST).read_text())["shards"]
        except (OSError, ValueError, KeyError):
            raise DataError(f"{self.folder}: is not cached, or not to its end; {again}") from None
        if other := self._differing(found):
            raise DataError(f"{self.folder}: was made with another {other}; {again}")
        for shard in shards:
            path = self.folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise DataError(f"{path}: is missing or cut; remove {self.folder} and {again}")

    def refuse_replacing(self) -> None:
        """DataError if the folder holds what was made with other facts."""
        if (self.folder / FACTS).exists():
            found = json.loads((self.folder / FACTS).read_text())
            if other := self._differing(found):
                raise DataError(
                    f"{self.folder}: was made with another {other}; give --overwrite to replace "
                    "it, or another cache"
                )

    def _differing(self, found: Mapping[str, Any]) -> str:
        return ", ".join(name for name in self.facts if found.get(name) != self.facts[name])

    def read(self, record: int) -> Any:
        """A record's arrays; DataError if its picture could not be read when they were made."""
        rank = int(np.searchsorted(self.records, record))
        tensors = self._shard(rank // ROWS)
        try:
            return self.kind(*(tensors[_key(record, name)].array() for name in self.kind._fields))
        except KeyError:
            raise DataError(
                f"{self.folder}: record {record} could not be read when cached"
            ) from None

    def write(self, make: Callable[[np.ndarray], Mapping[int, Any]]) -> None:
        """Make what is missing, shard by shard; another run goes on where this one was stopped.

        Args:
            make: gives the tuples of some records; those that cannot be read are left out.
        """
        owned = {FACTS, MANIFEST, *(_name(i) for i in range(self._shards))}
        with atomic_folder(
            self.folder, overwrite=True, owns=lambda n: n in owned or _is_ours(n), resume=True
        ) as partial:
            _start(partial, self.facts)
            shards = []
            for number in range(self._shards):
                path = partial / _name(number)
                if not path.exists():
                    records = self.records[number * ROWS : (number + 1) * ROWS]
                    _write_shard(path, make(records))
                entry = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                shards.append({"file": path.name, **entry})
            write_json(partial / MANIFEST, {"shards": shards})

    @property
    def _shards(self) -> int:
        return -(-len(self.records) // ROWS)

    def _opened(self, number: int) -> dict[str, Tensor]:
        return read_tensors(self.folder / _name(number))


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _is_ours(name: str) -> bool:
    return name.removeprefix(".").startswith(("shard-", "facts", "manifest"))


def _start(partial: Path, facts: Mapping[str, Any]) -> None:
    """Keep an interrupted run's shards if they follow from the same facts."""
    try:
        same = json.loads((partial / FACTS).read_text()) == facts
    except (OSError, ValueError):
        same = False
    if not same:
        for path in partial.iterdir():
            path.unlink()
        write_json(partial / FACTS, facts)


def _key(record: int, field: str) -> str:
    return f"{record}/{ON_DISK.get(field, field)}"


def _write_shard(path: Path, rows: Mapping[int, Any]) -> None:
    arrays = {
        _key(record, name): np.ascontiguousarray(value)
        for record, row in rows.items()
        for name, value in row._asdict().items()
    }
    specs = {name: Spec(value.dtype, value.shape) for name, value in arrays.items()}
    write_file(path, specs, lambda name: [arrays[name]])
