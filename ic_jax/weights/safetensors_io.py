"""Strict reader and writer of safetensors files, one tensor at a time.

The format is a little-endian u64 n, n bytes of JSON {name: {dtype, shape, data_offsets}}, then the
bytes of the tensors (https://github.com/huggingface/safetensors). The published reader accepts
duplicate names and reports most damaged files as "header too large". This one refuses both with
the reason, and maps tensors only while they are in use.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ic_jax.files import atomic_file, sync
from ic_jax.from_dict import first_few
from ic_jax.untrusted_files import open_regular
from ic_jax.weights.tensors import DTYPES, Shape, Tensor, WeightsError, contiguous, mapped

MAX_HEADER = 100_000_000  # the published reader's limit
AGAIN = "download or copy it again"

# Other files with the suffix .safetensors, by their first bytes.
IMPOSTORS: dict[bytes, str] = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"<": "is a web page, not weights; download the file again, logged in if its site asks for it",
    b"PK\x03\x04": "is a zip archive, probably a renamed torch .bin; give it its own suffix",
    b"\x80": "is a Python pickle, not safetensors; get the safetensors file from its publisher",
    b"GGUF": "is a GGUF file, which is quantised; get the safetensors file",
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file and return its tensors by name.

    Raises:
        WeightsError: the file is not a complete and well-formed safetensors file.
    """
    return read_with_metadata(path)[0]


def read_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, and its free-text metadata, from one header."""
    header, data = _header(path)
    metadata = _metadata(path, header)
    return _tensors(path, header, data, size=path.stat().st_size), metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Return the free-text metadata of a safetensors file; errors as `read_tensors`."""
    return _metadata(path, _header(path)[0])


def data_digest(path: Path) -> str:
    """Return the SHA-256 of a safetensors file's bytes after the header, in hexadecimal."""
    _, start = _header(path)
    digest = hashlib.sha256()
    with open_regular(path) as file:
        file.seek(start)
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header, and the offset of the tensors' bytes."""
    size = path.stat().st_size
    with open_regular(path) as file:
        start = file.read(64)
        if not start:
            raise WeightsError(f"{path}: is empty; {AGAIN}")
        for magic, what in IMPOSTORS.items():
            # The length of a header may also start with "<" or the first byte of a pickle.
            if start.lstrip().startswith(magic) and start[8:9] != b"{":
                raise WeightsError(f"{path}: {what}")
        length = int.from_bytes(start[:8], "little")
        if len(start) < 9 or start[8:9] != b"{" or length > MAX_HEADER:
            raise WeightsError(f"{path}: is not a safetensors file, or is damaged; {AGAIN}")
        if 8 + length > size:
            raise WeightsError(f"{path}: is truncated within its header; {AGAIN}")
        file.seek(8)
        return _parse(path, file.read(length)), 8 + length


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise WeightsError(
                f"{path}: {len(twice)} duplicate keys: {first_few(twice)}; get the file from its "
                "publisher"
            )
        return dict(pairs)

    try:
        return json.loads(raw, object_pairs_hook=unique)
    except WeightsError:
        raise
    except (ValueError, RecursionError):
        raise WeightsError(f"{path}: its header is not JSON; {AGAIN}") from None


def _metadata(path: Path, header: dict[str, Any]) -> dict[str, str]:
    metadata = header.get("__metadata__") or {}
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise WeightsError(f"{path}: the __metadata__ of its header are no texts; {AGAIN}")
    return metadata


def _tensors(path: Path, header: dict[str, Any], data: int, size: int) -> dict[str, Tensor]:
    header.pop("__metadata__", None)
    entries = [(name, *_entry(path, name, entry)) for name, entry in header.items()]
    end = 0
    for name, _, _, begin, stop in sorted(entries, key=lambda e: e[3:]):
        if begin != end:
            raise WeightsError(f"{path}: bytes before {name} overlap or belong to none; {AGAIN}")
        end = stop
    if data + end != size:
        what = "is truncated" if data + end > size else "has trailing bytes"
        raise WeightsError(f"{path}: {what}: {size} bytes, expected {data + end}; {AGAIN}")
    return {
        name: mapped(path, data + begin, dtype, shape) for name, dtype, shape, begin, _ in entries
    }


def _entry(path: Path, name: str, entry: Any) -> tuple[np.dtype, Shape, int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if any(type(n) is not int or n < 0 for n in (*shape, begin, end)) or dtype != str(dtype):
            raise ValueError(name)
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"{path}: the header's entry {name} is malformed; {AGAIN}") from None
    if dtype not in DTYPES:
        raise WeightsError(f"{path}: {name} has type {dtype}; supported are {', '.join(DTYPES)}")
    if math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise WeightsError(f"{path}: {name} has {end - begin} bytes, not its shape's; {AGAIN}")
    return DTYPES[dtype], shape, begin, end


@dataclass(frozen=True)
class Spec:
    """Dtype and shape of a tensor to write."""

    dtype: np.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """Written file with its checksum."""

    path: Path
    names: tuple[str, ...]
    size: int
    sha256: str


def write_tensors(
    folder: Path,
    stem: str,
    specs: Mapping[str, Spec],
    chunks: Callable[[str], Iterable[np.ndarray]],
    shard_bytes: int = 5_000_000_000,
) -> list[Written]:
    """Write stem.safetensors, or stem-00001-of-0000n.safetensors of at most `shard_bytes` each.

    Args:
        folder: existing folder.
        stem: start of the file names.
        specs: dtype and shape of every tensor, for the headers.
        chunks: yields the values of a tensor by its name, in pieces along the leading axis, so
            that only one piece is in memory.
        shard_bytes: size of the tensors of a file.
    """
    shards = _shards(specs, shard_bytes)
    written = []
    for i, names in enumerate(shards, 1):
        number = f"-{i:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        path = folder / f"{stem}{number}.safetensors"
        written.append(_write_shard(path, {name: specs[name] for name in names}, chunks, {}))
    return written


def write_file(
    path: Path,
    specs: Mapping[str, Spec],
    chunks: Callable[[str], Iterable[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file atomically, with the arguments of `write_tensors`.

    Args:
        metadata: free text for the header.
    """
    with atomic_file(path) as part:
        _write_shard(part, dict(specs), chunks, metadata or {})


def _shards(specs: Mapping[str, Spec], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    return shards


def _write_shard(
    path: Path,
    specs: dict[str, Spec],
    chunks: Callable[[str], Iterable[np.ndarray]],
    metadata: Mapping[str, str],
) -> Written:
    with path.open("wb") as file:
        digest = _write(file, specs, chunks, metadata)
        size = file.tell()
        sync(file)
    return Written(path, tuple(specs), size, digest)


def _write(
    file: BinaryIO,
    specs: dict[str, Spec],
    chunks: Callable[[str], Iterable[np.ndarray]],
    metadata: Mapping[str, str],
) -> str:
    type_names = {dtype: name for name, dtype in DTYPES.items()}
    # Wide types first, so that every tensor starts at a multiple of its element size.
    names = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name in names:
        spec = specs[name]
        header[name] = {
            "dtype": type_names[spec.dtype],
            "shape": spec.shape,
            "data_offsets": [offset, offset := offset + spec.nbytes],
        }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % 64)
    digest = hashlib.sha256()
    for piece in (len(raw).to_bytes(8, "little"), raw):
        file.write(piece)
        digest.update(piece)
    for name in names:
        left = specs[name].nbytes
        for chunk in chunks(name):
            assert chunk.dtype == specs[name].dtype, (name, chunk.dtype)
            data = contiguous(chunk).reshape(-1).view(np.uint8)
            left -= data.nbytes
            file.write(data.data)
            digest.update(data.data)
        assert left == 0, (name, left)
    return digest.hexdigest()
