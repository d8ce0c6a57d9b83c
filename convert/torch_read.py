"""Safe reader of torch's .bin files (a zip of a pickle and one entry per storage), without torch.

The pickle may name tensors, storages and ordered dictionaries only, so it cannot run code.
Tensors are mapped from the zip, which stores them uncompressed.
Format: torch/serialization.py, `_save` and `_load`.
"""

import errno
import io
import math
import os
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ic_jax.from_dict import first_few
from ic_jax.untrusted_files import open_regular
from ic_jax.weights.safetensors_io import AGAIN
from ic_jax.weights.tensors import DTYPES, Tensor, WeightsError, mapped

STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": DTYPES["F64"],
    "FloatStorage": DTYPES["F32"],
    "HalfStorage": DTYPES["F16"],
    "BFloat16Storage": DTYPES["BF16"],
    "LongStorage": DTYPES["I64"],
    "IntStorage": DTYPES["I32"],
    "ShortStorage": DTYPES["I16"],
    "CharStorage": DTYPES["I8"],
    "ByteStorage": DTYPES["U8"],
    "BoolStorage": DTYPES["BOOL"],
}
LEGACY = "is no zip archive: torch writes those since 1.6; get a newer file or safetensors"
MAX_DIRECTORY = 2**24  # bytes; those of 100 000 tensors take 10 MB
MAX_PICKLE = 100_000_000  # ten times the names and shapes of 100 000 tensors


def read_torch(path: Path, left_out: list[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a .bin file by name; dots join the names of nested groups.

    Args:
        left_out: receives the names of numbers, texts and lists, which training programs put
            beside the tensors.

    Raises:
        WeightsError: the file is damaged, compressed, or holds no tensors.
    """
    if not path.stat().st_size:
        raise WeightsError(f"{path}: is empty; {AGAIN}")
    with open_regular(path) as file:
        start = file.read(24).lstrip()
    if start.startswith((b"<", b"version https://git")):
        raise WeightsError(f"{path}: is a web page or a Git LFS pointer, not weights; {AGAIN}")
    if not start.startswith(b"PK"):
        raise WeightsError(f"{path}: {LEGACY}")
    _refuse_large_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _Entries(path, archive)
            data = archive.read(entries.pickle)
            _refuse_far_memos(path, data)
            content = _Unpickler(data, entries).load()
    except WeightsError:
        raise
    except Exception as error:  # BadZipFile, or any error of an unpickler that reads garbage
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file
            error.filename = error.filename or str(path)
            raise
        reason = type(error).__name__
        raise WeightsError(f"{path}: is truncated or damaged ({reason}); {AGAIN}") from None
    others: list[str] = []
    tensors = _flat(path, content, others)
    if others and not tensors:
        raise WeightsError(f"{path}: holds no tensors, only {first_few(others)}")
    if left_out is not None:
        left_out += others
    return tensors


def _refuse_large_directory(path: Path) -> None:
    """Raise WeightsError if the zip's directory, which is read whole, is larger than any model's.

    Format: APPNOTE.TXT of PKWARE, 4.3.14 and 4.3.16.
    """
    with open_regular(path) as file:
        file.seek(-min(path.stat().st_size, 2**16 + 100), os.SEEK_END)
        end = file.read()
    record, record64 = end.rfind(b"PK\x05\x06"), end.rfind(b"PK\x06\x06")
    size = int.from_bytes(end[record + 12 : record + 16], "little") if record >= 0 else 0
    if size == 2**32 - 1 and record64 >= 0:
        size = int.from_bytes(end[record64 + 40 : record64 + 48], "little")
    if size > MAX_DIRECTORY:
        raise WeightsError(
            f"{path}: lists its members in {size} bytes, more than {MAX_DIRECTORY}; get the file "
            "from its publisher"
        )


def _refuse_far_memos(path: Path, data: bytes) -> None:
    """Raise WeightsError if the pickle numbers an object higher than it has bytes.

    Picklers count from 0; the unpickler makes room for every number up to the highest.
    """
    for opcode, number, _ in pickletools.genops(data):
        is_put = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_put and isinstance(number, int) and number >= len(data):
            raise WeightsError(
                f"{path}: refused: its pickle of {len(data)} bytes asks for room for {number} "
                "objects. Get safetensors from a publisher you trust"
            )


def _flat(path: Path, content: Any, others: list[str]) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    seen = set()

    def visit(value: Any, name: str) -> None:
        if isinstance(value, Tensor):
            if name in flat:
                raise WeightsError(f"{path}: duplicate key {name}")
            flat[name] = value
            return
        if not isinstance(value, dict):
            others.append(name or "the file")
            return
        if id(value) in seen:  # a loop, or a small file that expands to endless names
            raise WeightsError(f"{path}: the group {name} occurs twice")
        seen.add(id(value))
        for key, inner in value.items():
            visit(inner, f"{name}.{key}" if name else str(key))

    visit(content, "")
    return flat


class _Entries:
    """Directory of the archive: the place of each storage's bytes in the file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        self.infos = {info.filename: info for info in archive.infolist()}
        self._refuse_bombs(archive.infolist())
        pickles = [name for name in self.infos if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise WeightsError(f"{path}: is a zip archive, but none that torch.save made")
        self.pickle = pickles[0]
        self.root = self.pickle.removesuffix("data.pkl")
        if self.infos[self.pickle].file_size > MAX_PICKLE:
            raise WeightsError(f"{path}: its pickle is too large for names and shapes")
        order = self.root + "byteorder"
        if order in self.infos and archive.read(order) != b"little":
            raise WeightsError(f"{path}: was written on a big-endian machine; save it again")

    def _refuse_bombs(self, infos: list[zipfile.ZipInfo]) -> None:
        if len(infos) != len(self.infos):
            raise WeightsError(f"{self.path}: names one entry twice; {AGAIN}")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise WeightsError(
                    f"{self.path}: {info.filename} is compressed, which torch.save never does; "
                    "get the file from its publisher"
                )
        if sum(info.file_size for info in infos) > self.path.stat().st_size:
            raise WeightsError(f"{self.path}: claims more bytes than it has; {AGAIN}")

    def storage(self, key: str, dtype: np.dtype, count: int) -> Tensor:
        info = self.infos[f"{self.root}data/{key}"]
        if info.file_size != count * dtype.itemsize:
            raise WeightsError(f"{self.path}: storage {key} has another size than its tensors")
        with open_regular(self.path) as file:
            file.seek(info.header_offset)
            header = file.read(30)  # the local header; its name and extra field vary in length
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        offset = info.header_offset + 30 + skip
        if header[:4] != b"PK\x03\x04" or offset + info.file_size > self.path.stat().st_size:
            raise WeightsError(f"{self.path}: storage {key} lies outside the file; {AGAIN}")
        tensor = mapped(self.path, offset, dtype, (count,))
        return tensor.view((count,), lambda x: self._checked(key, x, info.CRC))

    def _checked(self, key: str, x: np.ndarray, crc: int) -> np.ndarray:
        if zlib.crc32(x.view(np.uint8).data) != crc:
            raise WeightsError(f"{self.path}: storage {key} differs from its checksum; {AGAIN}")
        return x


@dataclass(frozen=True, slots=True)
class _Storage:
    """A torch storage class: its element type."""

    dtype: np.dtype


class _Rebuild:
    """torch._utils._rebuild_tensor_v2: a tensor as a strided view of a storage."""

    __slots__ = ()

    def __call__(self, storage: Tensor, offset: int, shape: Any, stride: Any, *_: Any) -> Tensor:
        shape, stride = tuple(shape), tuple(stride)
        if any(type(n) is not int or n < 0 for n in (offset, *shape, *stride)):
            raise ValueError("negative size")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if math.prod(shape) and last >= storage.shape[0]:
            raise ValueError("outside its storage")
        if math.prod(shape) > storage.shape[0]:  # some stride is 0: few bytes, any size
            raise ValueError("repeats its storage")
        item = storage.dtype.itemsize

        def change(x: np.ndarray) -> np.ndarray:
            return np.lib.stride_tricks.as_strided(
                x[offset:], shape, [step * item for step in stride], writeable=False
            )

        return storage.view(shape, change)


class _RebuildParameter:
    """torch._utils._rebuild_parameter: a tensor that requires a gradient."""

    __slots__ = ()

    def __call__(self, tensor: Tensor, *_: Any) -> Tensor:
        return tensor


ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
} | {("torch", name): _Storage(dtype) for name, dtype in STORAGES.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, entries: _Entries):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.entries = entries

    def find_class(self, module: str, name: str) -> Any:
        # A pickle reaches every callable through this method, before it can call it.
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise WeightsError(
                f"{self.entries.path}: refused: its pickle asks for {module}.{name}, which is no "
                "tensor; nothing in it was run. Get safetensors from a publisher you trust"
            ) from None

    def persistent_load(self, pid: Any) -> Tensor:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _Storage) or type(count) is not int:
            raise ValueError(kind)
        return self.entries.storage(key, storage.dtype, count)
