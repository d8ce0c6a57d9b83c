"""Memory of a training run, estimated without compiling: the settings with which it fits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from ic_jax import auto_mesh
from ic_jax.devices import platform
from ic_jax.host_memory import free_host_memory
from ic_jax.memory import abstract_mesh
from ic_jax.sharding import ShardingError
from train.activations import block_input_bytes
from train.optimizer import state_copies
from train.plan_command import base_of, trained_of
from train.recipe import Recipe

# Settings in the order of what they cost: first what changes nothing but the rounding, then a
# cache, which has to be written first, and last the average of the weights.
LEANER: tuple[dict[str, Any], ...] = (
    {},
    {"optimizer": "adamw-bfloat16"},
    {"optimizer": "adafactor"},
    {"optimizer": "adamw-bfloat16", "cache": True},
    {"optimizer": "adafactor", "cache": True},
    {"optimizer": "adafactor", "cache": True, "ema": 0.0},
)
CPU_SHARE = 0.8  # of the machine's free memory
MARGIN = 0.95  # of the devices' memory, since this is an estimate
# Activations of a sample over the inputs of all blocks, and samples that the rest amounts to: by
# the compiled plans at 512 pixels, 2.9 GB for one sample and 5.8 for four (docs/training.md).
ACTIVATIONS, REST = 1.8, 2


@dataclass(frozen=True)
class Devices:
    """Devices of one kind that a run would take."""

    name: str
    count: int
    memory: float | None  # bytes of each; None if not known
    is_cpu: bool = False

    @classmethod
    def here(cls) -> "Devices":
        """Return the devices of this machine, or of all processes."""
        devices = jax.devices()
        if platform(devices[0]) == "cpu":
            free = free_host_memory()
            share = CPU_SHARE * free / len(devices) if free else None
            return cls("CPU", len(devices), share, is_cpu=True)
        return cls(devices[0].device_kind, len(devices), auto_mesh.memory_of(devices[0]))

    def __str__(self) -> str:
        memory = f" of {self.memory / 1e9:.0f} GB" if self.memory else ""
        return f"{self.count} x {self.name}{memory}"


@dataclass(frozen=True)
class Fit:
    """Settings of a run, and its estimated bytes on each device."""

    recipe: Recipe
    needed: float
    fits: bool


def fitted(recipe: Recipe, shapes: Mapping[str, Any], devices: Devices) -> Fit:
    """Return a recipe with the least changes with which it should fit the devices.

    Args:
        recipe: with `accumulate` 1; the MODEL that it names is not read.
        shapes: the model's components, shapes in place of arrays.
        devices: whose memory is compared.

    Raises:
        ShardingError: no mesh of the devices holds the state with any of the settings.
    """
    last: Fit | None = None
    error: ShardingError | None = None
    for changes in LEANER:
        try:
            for last in _in_smaller_parts(_leaner(recipe, changes), shapes, devices):
                if last.fits:
                    return last
        except ShardingError as failure:
            error = failure
    if last is None:
        assert error is not None
        raise error
    return last


def _leaner(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with an entry of `LEANER`."""
    own = dict(changes)
    if own.get("cache"):
        own["cache"] = f"{recipe.data}-cache"
    if "ema" in own:
        ema = own.pop("ema")
        own["stages"] = {name: replace(s, ema=ema) for name, s in recipe.stages.items()}
    return replace(recipe, **own)


def _in_smaller_parts(recipe: Recipe, shapes: Mapping[str, Any], devices: Devices) -> Iterator[Fit]:
    """Yield a recipe that computes its batches in 1, 2, 4 ... parts."""
    base, trained = base_of(recipe, shapes), () if recipe.lora else trained_of(recipe, shapes)
    batches = [stage.batch for stage in recipe.stages.values()]
    copies = state_copies(recipe)
    memory = None if devices.is_cpu else devices.memory
    sizes = auto_mesh.training_sizes(base, trained, batches, devices.count, memory, copies)
    mesh = abstract_mesh(sizes)
    whole = memory is None or auto_mesh.base_fits_whole(base, trained, mesh, memory, copies)
    per_device = sizes["data"] * sizes["fsdp"]
    for parts in _powers_of_two(min(batches) // per_device):
        if any(batch % (parts * per_device) for batch in batches):
            continue
        # A batch in parts has the gradient of a part, in bfloat16, beside their float32 sum.
        state = auto_mesh.training_bytes(
            base, trained, mesh, replicate=whole, copies=copies + 0.5 * (parts > 1)
        )
        rows = {name: s.batch // parts // per_device for name, s in recipe.stages.items()}
        needed = state + activation_bytes(recipe, shapes, rows)
        stages = {n: replace(s, accumulate=parts) for n, s in recipe.stages.items()}
        fits = devices.memory is None or needed <= MARGIN * devices.memory
        yield Fit(replace(recipe, stages=stages), needed, fits)


def activation_bytes(recipe: Recipe, shapes: Mapping[str, Any], rows: Mapping[str, int]) -> float:
    """Return an estimate of the activations of a step that recomputes blocks, in bytes.

    Args:
        rows: samples that a device computes at a time, by stage; the largest stage counts.
    """
    flux, vae = shapes["transformer"].config, shapes["vae"].config
    return max(
        ACTIVATIONS * (rows[name] + REST) * block_input_bytes(recipe, stage, flux, vae)
        for name, stage in recipe.stages.items()
    )


def _powers_of_two(most: int) -> Sequence[int]:
    return [2**i for i in range(most.bit_length())]
