"""Tensors of any file of weights, told apart by its first bytes and read from its header alone."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convert.gguf_read import read_gguf
from convert.quantised import dequantised
from convert.shards import read_shards
from convert.torch_read import read_torch
from ic_jax.untrusted_files import open_regular
from ic_jax.weights.safetensors_io import read_tensors
from ic_jax.weights.tensors import FLOATS, Tensor

TORCH = (".bin", ".pt", ".pth", ".ckpt")


@dataclass
class Contents:
    """Tensors of a file by name, and how they are stored in it."""

    tensors: dict[str, Tensor]
    storage: str  # "plain", "scaled fp8", "GGUF (Q4_K, F32)"
    dtype: np.dtype | None = None  # to convert to by default; None: as in the file
    left_out: list[str] = field(default_factory=list)  # entries that are no tensors


def read_file(path: Path) -> Contents:
    """Read the header of a file of weights, or of all shards that an index names.

    Quantised tensors are dequantised to float32 as they are read; they convert to bfloat16 unless
    another dtype is asked for.

    Raises:
        WeightsError: the file is damaged, or quantised in a way that only its library computes.
        MissingPackageError: the package that reads this format is not installed.
    """
    if path.suffix == ".json":
        tensors = read_shards(path, lambda shard: read_file(shard).tensors)
        return Contents(tensors, "plain")
    with open_regular(path) as file:
        start = file.read(4)
    if start == b"GGUF":
        tensors, types = read_gguf(path)
        return Contents(tensors, f"GGUF ({', '.join(types)})", FLOATS["BF16"])
    left_out: list[str] = []
    if path.suffix in TORCH or start == b"PK\x03\x04":
        tensors = read_torch(path, left_out)
    else:
        tensors = read_tensors(path)
    plain, storage = dequantised(path, tensors)
    dtype = None if storage == "plain" else FLOATS["BF16"]
    return Contents(plain, storage, dtype, left_out)
