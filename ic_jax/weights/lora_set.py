"""Style LoRAs applied to models.

Sums are always computed in float32 from the base weights as they were loaded, and the base is
restored bit for bit: adding and subtracting in bfloat16 would change a tenth of all weights by
rounding.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ic_jax.preprocessing.arguments import check_finite
from ic_jax.weights.loading import parameters
from ic_jax.weights.lora import LoraFile
from ic_jax.weights.tensors import WeightsError


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
