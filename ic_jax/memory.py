"""Memory that a model needs, compared with what is free before a weight is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from ic_jax.activations import Drawing, drawing_bytes
from ic_jax.auto_mesh import ADAMW_COPIES, shapes_of, training_bytes
from ic_jax.devices import Chip, platform
from ic_jax.host_memory import free_host_memory
from ic_jax.sharding import AXES, ShardingError, stored_bytes
from ic_jax.weights.loading import with_dtype
from ic_jax.weights.model_folder import ModelFolder

ENCODED_TOGETHER = (("t5",), ("siglip", "dinov2"))  # of the encoders that can be offloaded
DEVICE_COUNTS = [2**i for i in range(1, 11)]  # that a message proposes for training
Modules = Mapping[str, Any]  # components by name, shapes in place of arrays
Choices = Iterable[tuple[str, Callable[[], float]]]  # in words, with the bytes for each device


class NotEnoughMemoryError(ValueError):
    """Model that the devices, or the machine, cannot hold; the message says what would fit."""


@dataclass(frozen=True)
class Room:
    """Free memory of each device, or of the machine, whose CPU devices share it."""

    name: str
    free: float  # bytes
    sharing: int = 1  # devices
    is_machine: bool = True
    withheld: float = 0  # bytes of a GPU that JAX does not take

    @classmethod
    def of(cls, devices: Sequence[Any]) -> "Room | None":
        """Return the room of devices of one kind; None if it is not known."""
        first = devices[0]
        if platform(first) == "cpu":
            free = free_host_memory()
            return None if free is None else cls("this machine", free, len(devices))
        stats = [device.memory_stats() or {} for device in devices]
        if not all(values.get("bytes_limit") for values in stats):
            return None
        free = min(values["bytes_limit"] - values.get("bytes_in_use", 0) for values in stats)
        chip = Chip.of(first) if platform(first) == "gpu" else None
        withheld = chip.memory - stats[0]["bytes_limit"] if chip else 0
        return cls(f"each {first.device_kind}", free, is_machine=False, withheld=withheld)

    def holds(self, per_device: float) -> bool:
        """Return whether every device can have so many bytes."""
        return per_device * self.sharing <= self.free

    def first_fitting(self, choices: Choices) -> list[str]:
        """Return the first choice whose bytes every device can have, in words; or none."""
        for name, size in choices:
            with suppress(ShardingError):  # a mesh that the model cannot be sharded over
                if self.holds(per_device := size()):
                    return [f"{name} ({per_device * self.sharing / 1e9:.1f} GB)"]
        return []

    def check(self, what: str, per_device: float, *fitting: Choices) -> None:
        """Raise NotEnoughMemoryError if the devices cannot have so many bytes each.

        Args:
            what: begins the message.
            per_device: bytes.
            fitting: kinds of choices, of each of which the message says the first that fits.
        """
        if self.holds(per_device):
            return
        choices = [text for kind in fitting for text in self.first_fitting(kind)]
        if per_device <= self.free + 0.9 * self.withheld:
            choices.append("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 (JAX takes 0.75 of a GPU)")
        remedy = f"what fits: {', '.join(choices)}" if choices else "take one with more memory"
        raise NotEnoughMemoryError(
            f"{what} needs {per_device * self.sharing / 1e9:.1f} GB of {self.name}, where "
            f"{self.free / 1e9:.1f} GB are free; {remedy}"
        )


def check_inference(
    folder: ModelFolder,
    dtype: Any,
    mesh: Mesh | None,
    *,
    offload_encoders: bool = False,
    drawing: Drawing | None = None,
) -> None:
    """Compare the bytes that a model needs with the free memory, where that is known.

    Args:
        folder: the model.
        dtype: dtype of its weights.
        mesh: devices that it is sharded over; None is the default device.
        offload_encoders: whether the large encoders are in memory only while they encode.
        drawing: pictures whose activations, as far as `drawing_bytes` knows them, come on top of
            the weights; None counts the weights alone.

    Raises:
        NotEnoughMemoryError: that does not fit.
    """
    room = Room.of([default_device()] if mesh is None else mesh.local_devices)
    if room is None:
        return
    modules = shapes_of(folder, dtype)
    half = with_dtype(modules, jnp.bfloat16)
    heads = modules["transformer"].config.num_attention_heads if "transformer" in modules else 1
    size = partial(inference_bytes, offload_encoders=offload_encoders, drawing=drawing)
    fewer = {
        f"{x.pictures} at once": partial(size, modules, mesh, drawing=x)
        for x in _fewer(drawing, 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"])
    }
    smaller = {
        f"{x.width} x {x.height} pixels": partial(size, modules, mesh, drawing=x)
        for x in _smaller(drawing)
    }
    less = {
        "bfloat16": partial(size, half, mesh),
        "offloaded encoders": partial(size, modules, mesh, offload_encoders=True),
        "bfloat16 and offloaded encoders": partial(size, half, mesh, offload_encoders=True),
    }
    more = {
        f"a mesh of tensor={n}": partial(size, modules, abstract_mesh({"tensor": n}))
        for n in range(2, heads + 1)
        if heads % n == 0 and not room.is_machine
    }
    what = f"{folder.path}: the model in {jnp.dtype(dtype)}"
    if drawing is not None:
        many = f"{drawing.pictures} pictures of " if fewer else ""
        what = f"{what} and {many}{drawing.width} x {drawing.height} pixels"
    kinds = (fewer, smaller, less, more)
    room.check(what, size(modules, mesh), *(choices.items() for choices in kinds))
    _check_transfer(folder, modules, room)


def _fewer(drawing: Drawing | None, shards: int) -> Iterator[Drawing]:
    """Yield drawings of half the pictures, a quarter and so on, down to one for each shard."""
    while drawing and drawing.pictures % (2 * shards) == 0:
        drawing = replace(drawing, pictures=drawing.pictures // 2)
        yield drawing


def _smaller(drawing: Drawing | None) -> Iterator[Drawing]:
    """Yield drawings of half the sides, a quarter and so on, down to about 256 pixels."""
    while drawing and min(drawing.height, drawing.width) >= 512:
        height, width = (side // 32 * 16 for side in (drawing.height, drawing.width))
        drawing = replace(drawing, height=height, width=width)
        yield drawing


def check_training(
    folder: ModelFolder,
    dtype: Any,
    mesh: Mesh,
    components: Iterable[str],
    trained: Any,
    *,
    replicate: bool,
    copies: float = ADAMW_COPIES,
    leaner: Mapping[str, float] | None = None,
    activations: float = 0,
    parts: Iterable[int] = (),
) -> None:
    """Compare the bytes that training needs with the free memory.

    Args:
        folder: the base.
        dtype: dtype of its weights.
        mesh: devices of the run.
        components: those of the base that are loaded.
        trained: shapes of the trained parameters.
        replicate: whether each device holds a copy of the base.
        copies: as for `auto_mesh.training_bytes`.
        leaner: the `copies` of other settings, by what the recipe says for them.
        activations: bytes that a step keeps at least, on all devices together.
        parts: numbers by which `accumulate` could be multiplied, which divides the activations.

    Raises:
        NotEnoughMemoryError: they do not fit.
    """
    room = Room.of(mesh.local_devices)
    if room is None:
        return
    modules = {name: m for name, m in shapes_of(folder, dtype).items() if name in components}

    def size(places: Mesh | AbstractMesh, share: int = 1, **options: Any) -> float:
        # The gradient, a copy of the state, grows while the activations are freed.
        gradient = training_bytes({}, trained, places, replicate=False, copies=1)
        kept = max(0, activations / share / places.size - gradient)
        return training_bytes(modules, trained, places, **options) + kept

    sharded = 'base = "sharded"' if replicate and mesh.size > mesh.shape["data"] else ""
    less = {
        f"accumulate {n} times as large": partial(size, mesh, n, replicate=replicate, copies=copies)
        for n in parts
    }
    if sharded:
        less[sharded] = partial(size, mesh, replicate=False, copies=copies)
    for name, count in (leaner or {}).items():
        less[", ".join(filter(None, (name, sharded)))] = partial(
            size, mesh, replicate=False, copies=count
        )
    more = {
        f"{n} devices with fsdp={n}": partial(
            size, abstract_mesh({"fsdp": n}), replicate=False, copies=copies
        )
        for n in DEVICE_COUNTS
        if n >= mesh.size and not room.is_machine
    }
    needed = size(mesh, replicate=replicate, copies=copies)
    what = f"{folder.path}: training in {jnp.dtype(dtype)}"
    room.check(what, needed, less.items(), more.items())
    _check_transfer(folder, modules, room)


def inference_bytes(
    modules: Modules,
    mesh: Mesh | AbstractMesh | None,
    *,
    offload_encoders: bool,
    drawing: Drawing | None = None,
) -> float:
    """Return the most bytes that encoding and drawing take on each device at a time.

    Activations are taken to be sharded over all devices, which is the least that each can have.
    """
    encoding = weight_bytes(modules, mesh, offload_encoders=offload_encoders)
    if drawing is None or not {"transformer", "vae"} <= modules.keys():
        return encoding
    large = {name for names in ENCODED_TOGETHER for name in names} if offload_encoders else ()
    kept = {name: module for name, module in modules.items() if name not in large}
    configs = {name: module.config for name, module in modules.items()}
    itemsize = modules["transformer"].proj_out.kernel.dtype.itemsize
    activations = drawing_bytes(configs, drawing, itemsize) / (1 if mesh is None else mesh.size)
    return max(encoding, weight_bytes(kept, mesh, offload_encoders=False) + activations)


def weight_bytes(
    modules: Modules, mesh: Mesh | AbstractMesh | None, *, offload_encoders: bool
) -> int:
    """Return the most bytes that a model's weights take on each device at a time."""
    places = abstract_mesh({}) if mesh is None else mesh
    sizes = {name: stored_bytes(module, places) for name, module in modules.items()}
    if not offload_encoders:
        return sum(sizes.values())
    groups = [[sizes.pop(name, 0) for name in names] for names in ENCODED_TOGETHER]
    return sum(sizes.values()) + max(map(sum, groups))


def default_device() -> Any:
    """Return the device on which JAX puts arrays without a sharding."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    return device if isinstance(device, jax.Device) else jax.local_devices(backend=device)[0]


def _check_transfer(folder: ModelFolder, modules: Modules, room: Room) -> None:
    """Raise NotEnoughMemoryError if a tensor cannot pass through the machine to its devices."""
    free = None if room.is_machine else free_host_memory()
    if free is not None:
        largest = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(dict(modules)))
        Room("this machine", free).check(f"{folder.path}: its largest tensor", largest)


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """Return the shape of a mesh."""
    full = dict.fromkeys(AXES, 1) | dict(sizes)
    return AbstractMesh(tuple(full.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
