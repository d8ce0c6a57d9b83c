"""Style LoRAs: reading and writing their files, and applying them to models.

A LoRA adds (alpha / rank) * B A to a linear map. The sum is always computed in float32 from the
base weights as they were loaded, and the base is restored bit for bit: adding and subtracting in
bfloat16 would change a tenth of all weights by rounding.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ic_jax.preprocessing.arguments import check_finite
from ic_jax.weights.loading import parameters
from ic_jax.weights.safetensors_io import Spec, read_metadata, read_tensors, write_file
from ic_jax.weights.tensors import WeightsError

# Prefixes of the peft layout, as diffusers writes it -> components.
PREFIXES = {"transformer.": "transformer", "text_encoder.": "clip"}
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|alpha)$")


@dataclass(frozen=True)
class LoraDelta:
    """Change of one linear map: scale * b @ a, with a [rank, in] and b [out, rank]."""

    a: np.ndarray
    b: np.ndarray
    scale: float


@dataclass(frozen=True)
class LoraFile:
    """Contents of a LoRA file; changes are by (component, published module name)."""

    name: str
    changes: Mapping[tuple[str, str], LoraDelta]
    weight: float
    trigger: str | None


def read_lora(file: Path | str, weight: float = 1.0, trigger: str | None = None) -> LoraFile:
    """Read a LoRA in the peft layout, as diffusers writes it.

    Alpha is the tensor `<module>.alpha`, or else the setting in the file's header, or else the
    rank.

    Args:
        weight: factor of the changes.
        trigger: words to put before every prompt.

    Raises:
        WeightsError: another layout or kind of LoRA, or a matrix that is missing, misshapen or
            not finite.
    """
    file = Path(file)
    weight = check_finite("LoRA weight", weight)
    parts: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    unknown = []
    for key, tensor in read_tensors(file).items():
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        match = _KEY.fullmatch(key.removeprefix(prefix)) if prefix else None
        if prefix is None or match is None:
            unknown.append(key)
            continue
        module = parts.setdefault((prefix, match["module"]), {})
        module[match["part"]] = np.asarray(tensor.array(), np.float32)
    if unknown or not parts:
        raise WeightsError(
            f"{file}: not a LoRA in the peft layout (transformer.*.lora_A.weight): "
            f"{len(unknown)} other keys, such as {unknown[:3]}"
        )
    alphas = _Alphas(file)
    changes = {
        (PREFIXES[prefix], module): _delta(file, module, tensors, alphas.of(prefix, module))
        for (prefix, module), tensors in parts.items()
    }
    return LoraFile(file.name, changes, weight, trigger)


def write_lora(
    file: Path | str,
    changes: Mapping[tuple[str, str], LoraDelta],
    dtype: np.dtype,
    *,
    overwrite: bool = False,
) -> None:
    """Write a LoRA file for `read_lora` and diffusers, atomically.

    B includes the scale, and no alpha is written, because some loaders ignore alpha.

    Args:
        changes: by (component, published module name).

    Raises:
        ValueError: the file name does not end in .safetensors.
        FileExistsError: `file` exists.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: a LoRA is one file; name it {file.name}.safetensors")
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file}: exists; name another file or give --overwrite")
    prefixes = {model: prefix for prefix, model in PREFIXES.items()}
    tensors = {}
    for (model, module), change in changes.items():
        name = prefixes[model] + module
        tensors[f"{name}.lora_A.weight"] = change.a.astype(dtype)
        tensors[f"{name}.lora_B.weight"] = (np.float32(change.scale) * change.b).astype(dtype)
    specs = {name: Spec(value.dtype, value.shape) for name, value in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, specs, lambda name: [tensors[name]])


class _Alphas:
    """Alphas in peft's settings in a file's header, {"transformer.lora_alpha": 16, ...}."""

    def __init__(self, file: Path):
        try:
            self._settings = json.loads(read_metadata(file).get("lora_adapter_metadata", "{}"))
        except ValueError:
            raise WeightsError(f"{file}: lora_adapter_metadata in its header is not JSON") from None
        for prefix in PREFIXES:
            for variant in ("use_rslora", "use_dora"):
                if self._settings.get(prefix + variant):
                    raise WeightsError(
                        f"{file}: {variant} is set: this kind of LoRA is not supported"
                    )

    def of(self, prefix: str, module: str) -> float | None:
        """Return the alpha of a module; None if the settings name none."""
        patterns = self._settings.get(f"{prefix}alpha_pattern") or {}
        # As in peft, a pattern is a regular expression for the end of a module's name.
        matching = (v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?({k})", module))
        return next(matching, self._settings.get(f"{prefix}lora_alpha"))


def _delta(
    file: Path, module: str, tensors: dict[str, np.ndarray], alpha: float | None
) -> LoraDelta:
    def fail(problem: str) -> WeightsError:
        return WeightsError(f"{file}: {module}: {problem}")

    missing = {"lora_A.weight", "lora_B.weight"} - set(tensors)
    if missing:
        raise fail(f"{' and '.join(sorted(missing))} is missing")
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise fail(f"lora_A {a.shape} and lora_B {b.shape} do not share a rank")
    rank = a.shape[0]
    if "alpha" in tensors:
        alpha = float(tensors["alpha"])
    alpha = float(rank) if alpha is None else float(alpha)
    if not (np.isfinite(alpha) and np.isfinite(a).all() and np.isfinite(b).all()):
        raise fail("holds numbers that are not finite")
    return LoraDelta(a, b, alpha / rank)


class LoraSet:
    """Loaded LoRAs by name, any of which may be active at a weight of its own.

    Host memory keeps the base values of all parameters that an active LoRA changes.
    """

    def __init__(self, models: Mapping[str, Any]):
        self._parameters = {component: parameters(model) for component, model in models.items()}
        self._base: dict[tuple[str, str], np.ndarray] = {}
        self.loras: dict[str, LoraFile] = {}  # loaded, by name
        self.active: dict[str, float] = {}  # weights of the active ones, by name

    @property
    def triggers(self) -> list[str]:
        """Trigger words of the active LoRAs, in order of loading."""
        triggers = (self.loras[name].trigger for name in self.active)
        return [trigger for trigger in triggers if trigger]

    def add(self, lora: LoraFile, name: str | None = None) -> None:
        """Add a LoRA and activate it, beside the active ones, at its weight.

        Args:
            name: by default "default_0", "default_1", ... as in diffusers.

        Raises:
            ValueError: the name is taken; nothing is changed.
            WeightsError: the LoRA does not fit the models; nothing is changed.
        """
        if name is None:
            name = next(n for n in map("default_{}".format, count()) if n not in self.loras)
        if name in self.loras:
            raise ValueError(f"a LoRA is called {name!r} already; choose another name or delete it")
        for (component, module), change in lora.changes.items():
            path, index = _locate(module)
            kernel = self._parameters.get(component, {}).get(f"{path}.kernel")
            shape = (change.a.shape[1], change.b.shape[0])
            if kernel is None or (index is not None and index >= kernel.shape[0]):
                raise WeightsError(f"{lora.name}: this model's {component} has no {module}")
            if kernel.shape[-2:] != shape:
                raise WeightsError(
                    f"{lora.name}: {module} is for a map {shape[0]} -> {shape[1]}; this model's "
                    f"is {kernel.shape[-2]} -> {kernel.shape[-1]}"
                )
        self.loras[name] = lora
        self.activate({**self.active, name: lora.weight})

    def activate(self, weights: Mapping[str, float]) -> None:
        """Apply the named LoRAs at the given weights, and no others.

        Raises:
            ValueError: an unknown name, or a weight that is not finite; nothing is changed.
        """
        self._check_names(weights)
        checked = {n: check_finite(f"weight of LoRA {n!r}", w) for n, w in weights.items()}
        # In order of loading, because the rounding of a sum depends on its order.
        self.active = {name: checked[name] for name in self.loras if name in checked}
        self._apply()

    def delete(self, names: Iterable[str]) -> None:
        """Remove LoRAs; the changes of those that stay are applied anew to the base weights.

        Raises:
            ValueError: an unknown name; nothing is changed.
        """
        names = set(names)
        self._check_names(names)
        active = {name: weight for name, weight in self.active.items() if name not in names}
        self.loras = {name: lora for name, lora in self.loras.items() if name not in names}
        self.activate(active)

    def clear(self) -> None:
        """Remove every LoRA; restore the base weights bit for bit."""
        self.delete(self.loras)

    @contextmanager
    def inactive(self) -> Iterator[None]:
        """Restore the base weights for the duration of a `with` block."""
        active = self.active
        self.activate({})
        try:
            yield
        finally:
            self.activate(active)

    def _check_names(self, names: Iterable[str]) -> None:
        if unknown := [name for name in names if name not in self.loras]:
            loaded = ", ".join(self.loras) or "none"
            raise ValueError(f"no LoRA is called {unknown[0]!r}; loaded are: {loaded}")

    def _apply(self) -> None:
        changes: dict[tuple[str, str], dict[int | None, list]] = {}
        for name, weight in self.active.items():
            for (component, module), change in self.loras[name].changes.items():
                path, index = _locate(module)
                entry = changes.setdefault((component, f"{path}.kernel"), {}).setdefault(index, [])
                entry.append((weight * change.scale, change))
        for key in set(changes) | set(self._base):
            variable = self._parameters[key[0]][key[1]]
            sharding = variable[...].sharding
            base = self._base.setdefault(key, jax.device_get(variable[...]))
            # Free the old value before the new one is made: a stack of blocks is gigabytes.
            variable.set_value(base)
            value = jax.device_put(base, sharding)
            if key in changes:
                value = _merge(value, *_stacked(changes[key], base.shape))
            else:
                del self._base[key]
            variable.set_value(value)


def _locate(module: str) -> tuple[str, int | None]:
    """Return the parameter path of a published module, and its index in a stack of blocks."""
    match = re.search(r"(?<=blocks\.|layers\.)\d+(?=\.)", module)
    if match is None:
        return module, None
    return module[: match.start()] + "*" + module[match.end() :], int(match.group())


def _stacked(
    changes: dict[int | None, list], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return all changes of a parameter as a [*l, rank, in] and b [*l, rank, out], scaled.

    The ranks of several LoRAs are concatenated; blocks that no LoRA changes are zero.
    """
    rank = max(sum(len(c.a) for _, c in entries) for entries in changes.values())
    a = np.zeros((*shape[:-2], rank, shape[-2]), np.float32)
    b = np.zeros((*shape[:-2], rank, shape[-1]), np.float32)
    for index, entries in changes.items():
        at: Any = () if index is None else index
        a_rows = np.concatenate([c.a for _, c in entries])
        a[at][: len(a_rows)] = a_rows
        b[at][: len(a_rows)] = np.concatenate([scale * c.b.T for scale, c in entries])
    return a, b


@partial(jax.jit, donate_argnums=0)
def _merge(
    kernel: Float[Array, "*l i o"], a: Float[Array, "*l r i"], b: Float[Array, "*l r o"]
) -> Float[Array, "*l i o"]:
    def merge(x: tuple[Array, Array, Array]) -> Array:
        kernel, a, b = x
        change = jnp.dot(a.T, b, precision=jax.lax.Precision.HIGHEST)  # not in TF32
        return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)

    # Block by block, because a stack of float32 sums would take several gigabytes.
    return merge((kernel, a, b)) if kernel.ndim == 2 else jax.lax.map(merge, (kernel, a, b))
