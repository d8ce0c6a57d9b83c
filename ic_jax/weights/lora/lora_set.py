"""Style LoRAs that are applied to models, beside weights that nobody writes."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np

from ic_jax.models.low_rank import LowRank, attach
from ic_jax.preprocessing.arguments import check_finite
from ic_jax.weights.lora.delta import LoraDelta, LoraFile
from ic_jax.weights.lora.merged import Merged
from ic_jax.weights.lora.targets import Targets, misfit
from ic_jax.weights.tensors import WeightsError

SMALLEST_RANK = 16


class LoraSet:
    """Loaded LoRAs by name, any of which may be active at a weight of its own.

    Their matrices are arguments of the compiled programs beside the base weights, padded to ranks
    of 16, 32, 64, ...: LoRAs of the same maps and padded ranks compile nothing anew.
    """

    def __init__(self, targets: Targets, models: Callable[[], Mapping[str, Any]]):
        """Start without LoRAs.

        Args:
            targets: linear maps of all models, from `targets_of`.
            models: returns the models that are in memory now, by component.
        """
        self.targets, self._models = targets, models
        self.loras: dict[str, LoraFile] = {}  # loaded, by name
        self.active: dict[str, float] = {}  # weights of the active ones, by name
        self._maps: dict[str, dict[str, LowRank]] = {}  # of the active ones, by component
        self._merged: Merged | None = None

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
            if problem := misfit(self.targets, component, module, change.inputs, change.outputs):
                raise WeightsError(f"{lora.name}: {problem}")
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
        self.unmerge()
        self._maps = self._sums()
        for component, model in self._models().items():
            self.apply_to(component, model)

    def merge(self) -> None:
        """Write the active LoRAs into the transformer, until the next change of LoRAs.

        Host memory keeps the weights that they change.
        """
        self.unmerge()
        model, maps = self._models()["transformer"], self._maps.get("transformer", {})
        attach(model, {})
        self._merged = Merged(model, maps)

    def unmerge(self) -> None:
        """Put the LoRAs beside the weights of the base again, which are as they were loaded."""
        if self._merged is not None:
            self._merged.restore()
            self._merged = None
            self.apply_to("transformer", self._models()["transformer"])

    def apply_to(self, component: str, model: Any) -> None:
        """Apply the active LoRAs to a model that has just been loaded."""
        attach(model, self._maps.get(component, {}))

    def delete(self, names: Iterable[str]) -> None:
        """Remove LoRAs; those that stay keep their weights.

        Raises:
            ValueError: an unknown name; nothing is changed.
        """
        names = set(names)
        self._check_names(names)
        active = {name: weight for name, weight in self.active.items() if name not in names}
        self.loras = {name: lora for name, lora in self.loras.items() if name not in names}
        self.activate(active)

    def clear(self) -> None:
        """Remove every LoRA; the models are what they were before the first."""
        self.delete(self.loras)

    @contextmanager
    def inactive(self) -> Iterator[None]:
        """Apply no LoRA for the duration of a `with` block."""
        active, merged = self.active, self._merged is not None
        self.activate({})
        try:
            yield
        finally:
            self.activate(active)
            if merged:
                self.merge()

    def _check_names(self, names: Iterable[str]) -> None:
        if unknown := [name for name in names if name not in self.loras]:
            loaded = ", ".join(self.loras) or "none"
            raise ValueError(f"no LoRA is called {unknown[0]!r}; loaded are: {loaded}")

    def _sums(self) -> dict[str, dict[str, LowRank]]:
        """Return the matrices of all active LoRAs by component and starred name."""
        changes: dict[tuple[str, str], dict[int | None, list[tuple[float, LoraDelta]]]] = {}
        for name, weight in self.active.items():
            for (component, module), change in self.loras[name].changes.items():
                starred, number = split_number(module)
                blocks = changes.setdefault((component, starred), {})
                blocks.setdefault(number, []).append((weight * change.scale, change))
        maps: dict[str, dict[str, LowRank]] = {}
        for (component, starred), blocks in sorted(changes.items()):
            maps.setdefault(component, {})[starred] = _sum(blocks, self._blocks(component, starred))
        return maps

    def _blocks(self, component: str, starred: str) -> int | None:
        """Return the number of blocks that a map is in; None for a map of no block."""
        if "*" not in starred:
            return None
        names = (starred.replace("*", str(i)) for i in count())
        return next(i for i, name in enumerate(names) if name not in self.targets[component])


def split_number(module: str) -> tuple[str, int | None]:
    """Return a module's name with a star for the number of its block, and the number."""
    match = re.search(r"(?<=blocks\.|layers\.|.block\.)\d+(?=\.)", module)
    if match is None:
        return module, None
    return f"{module[: match.start()]}*{module[match.end() :]}", int(match[0])


def _sum(blocks: Mapping[int | None, list[tuple[float, LoraDelta]]], count: int | None) -> LowRank:
    """Return all changes of a map as one, scaled.

    The ranks of several LoRAs are concatenated; blocks that no LoRA changes are zero.
    """
    rank = padded_rank(max(sum(len(c.a) for _, c in changes) for changes in blocks.values()))
    first = next(iter(blocks.values()))[0][1]
    stack = () if count is None else (count,)
    a = np.zeros((*stack, first.inputs, rank), np.float32)
    b = np.zeros((*stack, rank, first.outputs), np.float32)
    has_bias = any(c.bias is not None for changes in blocks.values() for _, c in changes)
    bias = np.zeros((*stack, first.outputs), np.float32) if has_bias else None
    for number, changes in blocks.items():
        at: Any = () if number is None else number
        start = 0
        for scale, change in changes:
            rows = slice(start, start := start + len(change.a))
            a[at][:, rows] = change.a.T
            b[at][rows] = np.float32(scale) * change.b.astype(np.float32).T
            if bias is not None and change.bias is not None:
                bias[at] += np.float32(scale) * change.bias.astype(np.float32)
    return LowRank(a, b, bias)


def padded_rank(rank: int) -> int:
    """Return the next power of two, at least 16."""
    return max(SMALLEST_RANK, 1 << (rank - 1).bit_length())
