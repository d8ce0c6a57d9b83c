"""Pairs of matrices in a LoRA file: their sizes from the header, and their values later."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ic_jax.weights.lora.delta import LoraDelta
from ic_jax.weights.lora.keys import Key
from ic_jax.weights.lora.settings import Settings
from ic_jax.weights.tensors import FLOATS, Tensor, WeightsError

MAX_RANK = 4096  # the widest maps of FLUX have 3072 channels and four times as many
NAMES = {"a": "A", "b": "B", "bias": "the bias of B", "alpha": "alpha"}


@dataclass(frozen=True)
class Pair:
    """Matrices of one linear map in a file; B's rows may be a part of a tensor's."""

    place: str  # file and module, for errors
    a: Tensor
    b: Tensor
    bias: Tensor | None
    scale: float

    @property
    def inputs(self) -> int:
        return self.a.shape[1]

    @property
    def outputs(self) -> int:
        return self.b.shape[0]

    def read(self) -> LoraDelta:
        """Return the values, as the file has them; WeightsError if some are not finite."""
        tensors = (self.a, self.b, self.bias)
        # Copies, because the file may be replaced while the LoRA is in use.
        a, b, bias = (None if x is None else np.array(x.array()) for x in tensors)
        for array in (a, b, bias):
            if array is not None and not np.isfinite(array.astype(np.float32)).all():
                raise WeightsError(f"{self.place}: holds numbers that are not finite")
        assert a is not None
        assert b is not None
        return LoraDelta(a, b, self.scale, bias)


def pairs_of(
    file: Path, keys: Mapping[str, Key], tensors: Mapping[str, Tensor], settings: Settings
) -> dict[tuple[str, str], Pair]:
    """Return the pairs of a file by component and published name of the linear map.

    Args:
        keys: what each key means.
        tensors: the file's tensors by key.
        settings: what peft wrote beside them.

    Raises:
        WeightsError: a matrix is missing, there twice, or of a shape that cannot be.
    """
    groups: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}
    for name, key in keys.items():
        parts = groups.setdefault((key.component, key.modules), {})
        if key.part in parts:
            raise WeightsError(f"{file}: {parts[key.part]} and {name} are the same matrix")
        parts[key.part] = name
    pairs: dict[tuple[str, str], Pair] = {}
    for (component, modules), parts in groups.items():
        group = _Group(file, modules, {part: tensors[name] for part, name in parts.items()})
        rank = group.rank()
        alpha = group.alpha(settings.alpha(component, modules[0]), rank)
        scale = alpha / settings.divisor(component, rank)
        swapped = keys[next(iter(parts.values()))].swapped
        for module, pair in group.split(scale, swapped=swapped):
            if (component, module) in pairs:
                raise WeightsError(f"{file}: two pairs of matrices change {module}")
            pairs[component, module] = pair
    return pairs


@dataclass(frozen=True)
class _Group:
    """Tensors of one module of a file, by part."""

    file: Path
    modules: tuple[str, ...]
    tensors: dict[str, Tensor]

    def split(self, scale: float, *, swapped: bool) -> Iterator[tuple[str, Pair]]:
        """Yield each linear map and its pair; A and the scale serve all."""
        a, b, bias = (self.tensors.get(part) for part in ("a", "b", "bias"))
        assert a is not None
        assert b is not None
        if bias is not None and bias.shape != b.shape[:1]:
            raise self._error(f"the bias {bias.shape} does not fit B {b.shape}")
        if swapped:
            b, bias = b.halves_swapped(), bias and bias.halves_swapped()
        start = 0
        for module, size in zip(self.modules, self._sizes(a.shape[1], b.shape[0]), strict=True):
            rows = slice(start, start := start + size)
            of_bias = bias and bias.rows(rows)
            yield module, Pair(f"{self.file}: {module}", a, b.rows(rows), of_bias, scale)

    def rank(self) -> int:
        """Return the rank; WeightsError unless A and B are there and share it."""
        missing = [NAMES[part] for part in ("a", "b") if part not in self.tensors]
        if missing:
            raise self._error(f"{' and '.join(missing)} of it are missing; get the file again")
        for part, tensor in self.tensors.items():
            if tensor.dtype not in FLOATS.values():
                raise self._error(f"{NAMES[part]} is {tensor.dtype}, not floating point")
        a, b = self.tensors["a"].shape, self.tensors["b"].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not math.prod(a + b):
            raise self._error(f"A {list(a)} and B {list(b)} do not share a rank")
        if a[0] > MAX_RANK:
            raise self._error(f"its rank is {a[0]}, and at most {MAX_RANK} is read")
        return a[0]

    def alpha(self, setting: object, rank: int) -> float:
        """Return alpha: the file's tensor, or else the setting, or else the rank."""
        alpha: object = rank if setting is None else setting
        if (tensor := self.tensors.get("alpha")) is not None:
            if math.prod(tensor.shape) != 1:
                raise self._error(f"alpha has shape {list(tensor.shape)}; it must be one number")
            alpha = float(tensor.array().reshape(())[()])
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise self._error(f"alpha is {alpha!r}; it must be a number")
        if not (math.isfinite(alpha) and alpha > 0):
            raise self._error(
                f"alpha is {alpha:g}; it must be above 0 (a negative weight subtracts a LoRA)"
            )
        return float(alpha)

    def _sizes(self, inputs: int, outputs: int) -> list[int]:
        """Return how many rows of B each map has: queries, keys and values as many as inputs."""
        if len(self.modules) == 1:
            return [outputs]
        sizes = [inputs] * 3
        if len(self.modules) > 3:
            sizes.append(outputs - sum(sizes))
        if sum(sizes) != outputs or sizes[-1] <= 0:
            raise self._error(
                f"B has {outputs} rows for {len(self.modules)} maps of {inputs} inputs; "
                "it is for another model"
            )
        return sizes

    def _error(self, problem: str) -> WeightsError:
        return WeightsError(f"{self.file}: {', '.join(self.modules)}: {problem}")
