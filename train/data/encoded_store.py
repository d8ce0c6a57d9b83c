"""Store of encoded rows on disk: the outputs of the frozen encoders for the records of a data set.

    FOLDER/facts.json                metadata that determines the arrays; written first
    FOLDER/shard-00000.safetensors   64 records each, tensors named RECORD/FIELD
    FOLDER/manifest.json             every shard's size and SHA-256; written last

The folder appears whole, at the end; until then its files are in FOLDER.partial.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ic_jax.files import atomic_folder, sha256_file, write_json
from ic_jax.untrusted_files import files_below, read_json
from ic_jax.weights.safetensors_io import Spec, read_with_metadata, write_file
from ic_jax.weights.tensors import Tensor, contiguous
from train.data.errors import DataError

FACTS, MANIFEST = "facts.json", "manifest.json"
ROWS = 64  # records per shard; 300 MB of FLUX's text embeddings
OPEN = 256  # shards whose headers are kept in memory
ON_DISK = {"std": "deviation"}  # fields that the files call otherwise


class Embeddings(NamedTuple):
    """Outputs of the text encoders for b prompts, or for one without b."""

    t5: Float[Array, "*b t e"]
    pooled: Float[Array, "*b p"]


class LatentPosterior(NamedTuple):
    """Normal distribution of the latents of b pictures, or of one without b."""

    mean: Float[Array, "*b y x c"]
    std: Float[Array, "*b y x c"]


class EncodedRows:
    """Folder with a named tuple of arrays for each record of a set."""

    def __init__(
        self, folder: Path, row_type: Any, records: np.ndarray, metadata: Mapping[str, Any]
    ) -> None:
        """Describe the folder without reading it.

        Args:
            folder: place of the folder.
            row_type: `Embeddings` or `LatentPosterior`.
            records: record numbers, ascending.
            metadata: JSON values that determine the arrays; a folder with others is refused.
        """
        self.folder, self.row_type, self.records = folder, row_type, records
        self.metadata = dict(metadata)
        self._shard = lru_cache(maxsize=OPEN)(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedRows, (self.folder, self.row_type, self.records, self.metadata)

    def check(self) -> None:
        """Raise DataError unless the folder is complete and has the same metadata."""
        again = "run `python -m train cache` with this recipe"
        try:
            stored, shards = read_json(self.folder / FACTS), read_manifest(self.folder)
        except (OSError, ValueError):
            raise DataError(f"{self.folder}: is not cached, or only in part; {again}") from None
        if other := self._differing(stored):
            raise DataError(f"{self.folder}: was made with another {other}; {again}")
        for shard in shards:
            path = self.folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise DataError(f"{path}: is missing or cut off; remove {self.folder} and {again}")

    def refuse_replacing(self) -> None:
        """Raise DataError if the folder exists with other metadata."""
        if (self.folder / FACTS).exists():
            stored = read_json(self.folder / FACTS)
            if other := self._differing(stored):
                raise DataError(
                    f"{self.folder}: was made with another {other}; give --overwrite to replace "
                    "it, or another cache"
                )

    def _differing(self, stored: Any) -> str:
        stored = stored if isinstance(stored, dict) else {}
        return ", ".join(k for k, value in self.metadata.items() if stored.get(k) != value)

    def read(self, record: int) -> Any:
        """Read the arrays of a record.

        Raises:
            DataError: its picture could not be read for encoding, or an array differs from its
                checksum.
        """
        rank = int(np.searchsorted(self.records, record))
        tensors, checksums = self._shard(rank // ROWS)
        keys = [_key(record, name) for name in self.row_type._fields]
        if not tensors.keys() >= set(keys):
            raise DataError(f"{self.folder}: record {record} could not be read when cached")
        arrays = [tensors[key].array() for key in keys]
        for key, array in zip(keys, arrays, strict=True):
            expected = checksums.get(key)  # none in earlier caches
            if expected and expected != _checksum(array):
                raise DataError(
                    f"{self.folder / _name(rank // ROWS)}: {key} differs from its checksum; remove "
                    f"{self.folder} and make the cache again"
                )
        return self.row_type(*arrays)

    def write(self, make: Callable[[np.ndarray], Mapping[int, Any]]) -> None:
        """Write the missing shards; a call that was interrupted is resumed by the next.

        Args:
            make: encodes records, by number, to rows; leaves out records that cannot be read.
        """
        with atomic_folder(self.folder, overwrite=True, owns=_is_ours, resume=True) as partial:
            _start(partial, self.metadata)
            shards = []
            for number in range(-(-len(self.records) // ROWS)):
                path = partial / _name(number)
                if not path.exists():
                    records = self.records[number * ROWS : (number + 1) * ROWS]
                    _write_shard(path, make(records))
                entry = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                shards.append({"file": path.name, **entry})
            write_json(partial / MANIFEST, {"shards": shards})

    def _open(self, number: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors of a shard, and their checksums, by name."""
        return read_with_metadata(self.folder / _name(number))


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Return the shards of a finished folder: name, size and SHA-256 of each.

    Raises:
        OSError: there is no manifest.
        DataError: it is damaged, or names a file elsewhere.
    """
    file = folder / MANIFEST
    try:
        manifest = read_json(file)
        path_of = files_below(folder)
        for shard in manifest["shards"]:
            path_of(shard["file"])
            int(shard["bytes"])
            str(shard["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: is damaged ({error}); make the cache again") from None
    return manifest["shards"]


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _is_ours(name: str) -> bool:
    return name.removeprefix(".").startswith(("shard-", "facts", "manifest"))


def _start(partial: Path, metadata: Mapping[str, Any]) -> None:
    """Keep the shards of an interrupted call if their metadata is the same."""
    try:
        same = read_json(partial / FACTS) == metadata
    except (OSError, ValueError):
        same = False
    if not same:
        for path in partial.iterdir():
            path.unlink()
        write_json(partial / FACTS, metadata)


def _key(record: int, field: str) -> str:
    return f"{record}/{ON_DISK.get(field, field)}"


def _write_shard(path: Path, rows: Mapping[int, Any]) -> None:
    arrays = {
        _key(record, name): np.ascontiguousarray(value)
        for record, row in rows.items()
        for name, value in row._asdict().items()
    }
    specs = {name: Spec(value.dtype, value.shape) for name, value in arrays.items()}
    checksums = {name: _checksum(value) for name, value in arrays.items()}
    write_file(path, specs, lambda name: [arrays[name]], checksums)


def _checksum(array: np.ndarray) -> str:
    """Return the CRC-32 of an array's bytes, which is compared whenever the array is read."""
    return f"{zlib.crc32(contiguous(array).reshape(-1).view(np.uint8).data):08x}"
