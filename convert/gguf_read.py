"""GGUF files, as ComfyUI users have them of FLUX and T5, read by the `gguf` package.

Source: the format's description in ggml-org/ggml; the quantised formats are those of gguf.quants.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from convert.tokenizers import MissingPackageError
from ic_jax.weights.safetensors_io import AGAIN
from ic_jax.weights.tensors import Tensor, WeightsError, computed, mapped

FORMATS = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0"),
    *("Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS"),
)


def read_gguf(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by name, dequantised to float32 as they are read, and the formats.

    Raises:
        MissingPackageError: the gguf package is not installed.
        WeightsError: the file is damaged, or has a format that the package cannot dequantise.
    """
    if not importlib.util.find_spec("gguf"):
        raise MissingPackageError(
            f"{path}: reading GGUF needs a package; run `pip install -e '.[gguf]'`"
        )
    import gguf

    try:
        entries = gguf.GGUFReader(path).tensors
    except Exception as error:  # of NumPy, when it reads beyond the end, or the package's own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: is a damaged GGUF file ({reason}); {AGAIN}") from None
    for entry in entries:
        if entry.tensor_type.name not in FORMATS:
            raise WeightsError(
                f"{path}: {entry.name} has the format {entry.tensor_type.name}; get a file of one "
                f"of {', '.join(FORMATS)}"
            )
        if not entry.shape.size or not entry.shape.all():
            shape = tuple(entry.shape.tolist())
            raise WeightsError(f"{path}: {entry.name} has the shape {shape}; {AGAIN}")
    formats = sorted({entry.tensor_type.name for entry in entries})
    return {entry.name: _tensor(path, entry) for entry in entries}, formats


def _tensor(path: Path, entry: Any) -> Tensor:
    shape = tuple(int(n) for n in reversed(entry.shape))  # ggml counts the fastest axis first
    kind, stored = entry.tensor_type, entry.data
    # The package maps the whole file, whose pages would stay in memory once they are read.
    blocks = mapped(path, int(entry.data_offset), stored.dtype, stored.shape)

    def of_rows(rows: slice) -> np.ndarray:
        import gguf

        return gguf.quants.dequantize(blocks.array()[rows], kind).reshape(-1, *shape[1:])

    return computed(shape, of_rows)
