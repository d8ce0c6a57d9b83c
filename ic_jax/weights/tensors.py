"""Lazily read tensors, and the strict comparison of their names and shapes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np

from ic_jax.from_dict import first_few

Shape = tuple[int, ...]


class WeightsError(ValueError):
    """Unusable file of weights; the message is one line: the file, what is wrong, what to do."""


class OtherWeightsError(WeightsError):
    """An intact file of weights that is something else than ic_jax reads."""


FLOATS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
# Names of the element types in safetensors files.
DTYPES: dict[str, np.dtype] = FLOATS | {
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Tensor:
    """Tensor in a file; each call of `array` maps it anew, so its pages go with the result."""

    dtype: np.dtype
    shape: Shape
    array: Callable[[], np.ndarray] = field(repr=False)
    end: int = 0  # of its bytes in the file; 0 if they are not in one place
    # Computes rows (a slice with start and stop) alone, where all cost time and memory.
    array_of_rows: Callable[[slice], np.ndarray] | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, shape: Shape, change: Callable[[np.ndarray], np.ndarray]) -> "Tensor":
        """Return the tensor sliced, transposed or reshaped to `shape` by `change` on reading."""
        array = self.array
        return replace(self, shape=shape, array=lambda: change(array()), array_of_rows=None)

    def rows(self, rows: slice) -> "Tensor":
        """Return some rows of the tensor."""
        numbers = range(self.shape[0])[rows]
        shape = (len(numbers), *self.shape[1:])
        of_rows = self.array_of_rows
        if of_rows is None:
            return self.view(shape, lambda x: x[rows])

        def of_these(part: slice) -> np.ndarray:
            return of_rows(slice(numbers[part].start, numbers[part].stop))

        return replace(self, shape=shape, array=lambda: of_rows(rows), array_of_rows=of_these)

    def halves_swapped(self) -> "Tensor":
        """Return the tensor with its last half of rows before the first."""
        return self.view(self.shape, swap_halves)


def swap_halves(x: np.ndarray) -> np.ndarray:
    """Return `x` with its last half of rows before the first."""
    return np.concatenate([x[len(x) // 2 :], x[: len(x) // 2]])


def computed(shape: Shape, of_rows: Callable[[slice], np.ndarray]) -> Tensor:
    """Return a float32 tensor that is computed as it is read, in rows."""
    dtype = np.dtype(np.float32)
    return Tensor(dtype, shape, lambda: of_rows(slice(None)), array_of_rows=of_rows)


def mapped(path: Path, offset: int, dtype: np.dtype, shape: Shape) -> Tensor:
    """Return the tensor whose bytes start at `offset` in a file."""
    size = math.prod(shape) * dtype.itemsize

    def array() -> np.ndarray:
        if not size:
            return np.empty(shape, dtype)
        raw = np.memmap(path, np.uint8, mode="r", offset=offset, shape=(size,))
        return np.asarray(raw).view(dtype).reshape(shape)

    return Tensor(dtype, shape, array, end=offset + size)


def contiguous(x: np.ndarray) -> np.ndarray:
    """Return `x` in C order, five times as fast as NumPy for a transposed matrix."""
    if x.ndim != 2 or x.flags.c_contiguous:
        return np.ascontiguousarray(x)
    y = np.empty(x.shape, x.dtype)
    for i in range(0, x.shape[1], 64):  # 64 elements of a row fill complete cache lines
        y[:, i : i + 64] = x[:, i : i + 64]
    return y


@dataclass
class Mismatch:
    """Differences between the expected tensors and those of a file."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    @classmethod
    def between(cls, expected: Mapping[str, Shape], actual: Mapping[str, Tensor]) -> "Mismatch":
        """Compare names, shapes and dtypes."""
        mismatch = cls(
            missing=[name for name in expected if name not in actual],
            unexpected=[name for name in actual if name not in expected],
        )
        for name, tensor in actual.items():
            if name in expected and tensor.shape != expected[name]:
                shapes = f"{list(tensor.shape)}, expected {list(expected[name])}"
                mismatch.misshapen.append(f"{name} {shapes}")
            elif name in expected and tensor.dtype not in FLOATS.values():
                mismatch.misshapen.append(f"{name} {tensor.dtype}, expected floating point")
        return mismatch

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen or self.not_finite)

    def __str__(self) -> str:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": self.misshapen,
            "not finite": self.not_finite,
        }
        return "; ".join(f"{len(v)} {k}: {first_few(v)}" for k, v in kinds.items() if v)
