"""Writer of torch's .bin files (see `torch_read`), without torch."""

import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from convert.torch_read import STORAGES
from ic_jax.files import sync
from ic_jax.weights.safetensors_io import Spec
from ic_jax.weights.tensors import WeightsError, contiguous

ALIGNMENT = 64  # bytes, of every storage in the file, as torch's


def write_torch(
    path: Path,
    groups: Mapping[str, Mapping[str, Spec]],
    array: Callable[[str, str], np.ndarray],
) -> None:
    """Write {group: {name: tensor}} for torch.load, with or without weights_only.

    Args:
        groups: dtype and shape of each tensor, by group and name.
        array: returns the values of a tensor by its group and name, called for one at a time.
    """
    keys = [(group, name) for group, tensors in groups.items() for name in tensors]
    for group, name in keys:
        if groups[group][name].dtype not in STORAGES.values():
            raise WeightsError(f"{path}: a .bin cannot hold {groups[group][name].dtype}: {name}")
    content = _pickled(groups)
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

            def add(name: str, content: bytes | memoryview) -> None:
                info = zipfile.ZipInfo(f"{path.stem}/{name}")  # dated 1980, as torch's are
                info.file_size = memoryview(content).nbytes
                start = file.tell() + 30 + len(info.filename.encode()) + 4
                padding = -start % ALIGNMENT
                info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
                with archive.open(info, "w") as entry:
                    entry.write(content)

            add("data.pkl", content)
            add("byteorder", b"little")
            for i, (group, name) in enumerate(keys):
                add(f"data/{i}", contiguous(array(group, name)).reshape(-1).view(np.uint8).data)
            add("version", b"3\n")
        sync(file)


def _pickled(groups: Mapping[str, Mapping[str, Spec]]) -> bytes:
    """Return the nested dictionary as torch pickles it: each tensor a call on a storage."""
    out = [pickle.PROTO + b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    key = 0
    for group, tensors in groups.items():
        out += [_text(group), pickle.EMPTY_DICT, pickle.MARK]
        for name, spec in tensors.items():
            out += [_text(name), _tensor(spec, str(key))]
            key += 1
        out.append(pickle.SETITEMS)
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])


def _tensor(spec: Spec, key: str) -> bytes:
    storage = next(name for name, dtype in STORAGES.items() if dtype == spec.dtype)
    strides = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
    where = [_text("storage"), _global("torch", storage), _text(key), _text("cpu")]
    arguments = [
        _tuple([*where, _number(math.prod(spec.shape))]) + pickle.BINPERSID,
        _number(0),
        _tuple(map(_number, spec.shape)),
        _tuple(map(_number, strides)),
        pickle.NEWFALSE,  # requires_grad
        _global("collections", "OrderedDict") + _tuple([]) + pickle.REDUCE,  # hooks
    ]
    return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(arguments) + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    raw = text.encode()
    return pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw


def _number(n: int) -> bytes:
    if n < 2**31:
        return pickle.BININT + n.to_bytes(4, "little")
    raw = pickle.encode_long(n)
    return pickle.LONG1 + bytes([len(raw)]) + raw


def _tuple(items: Iterable[bytes]) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
