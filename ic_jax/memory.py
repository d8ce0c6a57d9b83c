"""Memory that a model's weights need, compared with what there is before any of them is read."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from ic_jax.auto_mesh import shapes_of
from ic_jax.devices import Chip, platform
from ic_jax.sharding import AXES, ShardingError, stored_bytes
from ic_jax.weights.model_folder import ModelFolder

ENCODED_TOGETHER = (("t5",), ("siglip", "dinov2"))  # of the encoders that can be offloaded


class NotEnoughMemoryError(ValueError):
    """Weights that the devices, or the machine, cannot hold; the message says what would fit."""


@dataclass(frozen=True)
class Room:
    """Free memory of each device, or of a machine whose CPU devices share it."""

    name: str
    free: float  # bytes
    devices: int  # that share it
    outside: float  # bytes of a GPU that JAX leaves to others

    @classmethod
    def of(cls, devices: Sequence[Any]) -> "Room | None":
        """Return the free memory of devices of one kind; None if it is not known."""
        first = devices[0]
        if platform(first) == "cpu":
            free = free_host_memory()
            return None if free is None else cls("this machine", free, len(devices), 0)
        stats = [device.memory_stats() or {} for device in devices]
        if not all("bytes_limit" in values for values in stats):
            return None
        free = min(values["bytes_limit"] - values.get("bytes_in_use", 0) for values in stats)
        chip = Chip.of(first)
        outside = chip.memory - stats[0]["bytes_limit"] if chip and platform(first) == "gpu" else 0
        return cls(f"each {first.device_kind}", free, 1, max(outside, 0))


def check_inference(
    folder: ModelFolder, dtype: Any, mesh: Mesh | None, *, offload_encoders: bool = False
) -> None:
    """Compare the bytes of a model's weights with the free memory.

    Activations come on top of them (`infer plan`). Where the memory is not known, nothing is
    compared.

    Args:
        folder: the model.
        dtype: dtype of its weights.
        mesh: devices that it is sharded over; None is the default device.
        offload_encoders: whether the large encoders are in memory only while they encode.

    Raises:
        NotEnoughMemoryError: the weights alone do not fit.
    """
    room = Room.of([default_device()] if mesh is None else mesh.local_devices)
    if room is None:
        return
    shapes = shapes_of(folder, dtype)
    needed = room.devices * weight_bytes(shapes, mesh, offload_encoders=offload_encoders)
    if needed <= room.free:
        return
    fitting = _what_fits(shapes, mesh, room, offload_encoders=offload_encoders)
    if needed <= room.free + 0.9 * room.outside:
        fitting.append("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 (JAX takes 75% of a GPU by default)")
    raise NotEnoughMemoryError(
        f"{folder.path}: its weights in {jnp.dtype(dtype)} need {needed / 1e9:.1f} GB of "
        f"{room.name}, where {room.free / 1e9:.1f} GB are free; "
        + (f"what fits: {', '.join(fitting)}" if fitting else "take one with more memory")
    )


def default_device() -> Any:
    """Return the device on which JAX puts arrays without a sharding."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    return device if isinstance(device, jax.Device) else jax.local_devices(backend=device)[0]


def weight_bytes(
    modules: Mapping[str, Any], mesh: Mesh | AbstractMesh | None, *, offload_encoders: bool
) -> int:
    """Return the most bytes that a model's weights take on each device at a time.

    Args:
        modules: components by name, shapes in place of arrays.
        mesh: None is one device.
        offload_encoders: see `check_inference`.
    """
    sizes = {name: stored_bytes(part, mesh or _mesh({})) for name, part in modules.items()}
    if not offload_encoders:
        return sum(sizes.values())
    groups = [[sizes.pop(name, 0) for name in names] for names in ENCODED_TOGETHER]
    return sum(sizes.values()) + max(map(sum, groups))


def free_host_memory() -> float | None:
    """Return the bytes that this process can still take, swap included; None if not known."""
    with suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        free = 1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])
        return min(free, *_group_limits())
    return None


def _group_limits() -> list[float]:
    """Return what the limit of a container leaves, if it has one (cgroup version 2)."""
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, KeyError, ValueError):
        stat = (folder / "memory.stat").read_text().split()
        cached = dict(zip(stat[::2], map(int, stat[1::2]), strict=True))["file"]
        used = int((folder / "memory.current").read_text())
        return [int((folder / "memory.max").read_text()) - used + cached]
    return [float("inf")]


def _what_fits(
    modules: Mapping[str, Any], mesh: Mesh | None, room: Room, *, offload_encoders: bool
) -> list[str]:
    """Return what could be chosen instead, with the bytes that it needs of the room."""
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), dict(modules))
    heads = modules["transformer"].config.num_attention_heads
    counts = [n for n in range(2, heads + 1) if heads % n == 0] if room.devices == 1 else []

    def first(choices: Iterable[tuple[str, Any, Mesh | AbstractMesh | None, bool]]) -> list[str]:
        for what, parts, places, offload in choices:
            with suppress(ShardingError):  # a mesh that the model cannot be sharded over
                size = room.devices * weight_bytes(parts, places, offload_encoders=offload)
                if size <= room.free:
                    return [f"{what} ({size / 1e9:.1f} GB)"]
        return []

    less = [
        ("bfloat16", half, mesh, offload_encoders),
        ("offloaded encoders", modules, mesh, True),
        ("bfloat16 and offloaded encoders", half, mesh, True),
    ]
    more = (
        (f"a mesh of tensor={n}", modules, _mesh({"tensor": n}), offload_encoders) for n in counts
    )
    return first(less) + first(more)


def _mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """Return the shape of a mesh."""
    full = dict.fromkeys(AXES, 1) | dict(sizes)
    return AbstractMesh(tuple(full.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
