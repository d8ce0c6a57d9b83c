"""Choice of the device mesh: as written by the user, or by the devices' number and memory."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from ic_jax import multihost
from ic_jax.config import CONFIGS
from ic_jax.devices import Chip
from ic_jax.sharding import AXES, ShardingError, describe, make_mesh, parse, stored_bytes
from ic_jax.weights.loading import COMPONENTS, abstract, read_config, with_dtype
from ic_jax.weights.model_folder import ModelFolder

# Fraction of a device's memory for weights and training state; the rest is for activations. The
# plan commands (docs/plans.md) compute it exactly.
MEMORY_FRACTION = 0.65
# The same where no mesh leaves so much: a training run whose batch is computed in small parts.
TIGHT_FRACTION = 0.85

# Adam: float32 copies of the trainable parameters during a step: themselves, their average, two
# moments, the gradient.
ADAMW_COPIES = 5.0

PUBLISHED = {  # config of each published component
    "transformer": "flux-dev",
    "adapter": "instantcharacter",
    "siglip": "siglip-so400m-384",
    "dinov2": "dinov2-giant",
    "t5": "t5-xxl",
    "clip": "clip-l",
    "vae": "flux-vae",
}

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # devices of machines and slices that there are

Sizes = dict[str, int]


def for_inference(text: str, folder: ModelFolder | Path | str, dtype: Any) -> Mesh | None:
    """Return the mesh on which to run inference with a MODEL folder; None is a single device.

    Of several processes, each takes a mesh of its local devices if that is enough, and otherwise
    all share one mesh.

    Args:
        text: mesh axes such as "data=2,tensor=4"; or "auto", which chooses by the devices' memory
            (a single device where the memory is unknown).
        dtype: dtype of the weights.

    Raises:
        ShardingError: the devices cannot form the mesh, or no mesh of them holds the model.
    """
    local, every = jax.local_devices(), jax.devices()
    if text != "auto":
        sizes = parse(text)
        count = math.prod(sizes.values())
        if len(local) < count < len(every):
            raise ShardingError(
                f"mesh {text!r} has {count} devices; take at most the {len(local)} devices of "
                f"one process, or all {len(every)}"
            )
        return make_mesh(sizes, local if count <= len(local) else every)
    # Free GPU memory differs a little between processes, which must decide alike.
    memory = multihost.broadcast_json("memory", lambda: memory_of(local[0]))
    if len(every) == 1 or memory is None:
        return None
    mesh = inference_mesh(shapes_of(folder, dtype), local, every, memory)
    return mesh if mesh.size > 1 else None


def for_training(
    text: str,
    folder: ModelFolder | Path | str,
    dtype: Any,
    rows: Mapping[str, int],
    adapter: Any = None,
    *,
    unused: Iterable[str] = (),
    copies: float = ADAMW_COPIES,
) -> tuple[Mesh, bool]:
    """Return the mesh for a recipe, and whether each device has memory for the whole base.

    Args:
        text: as for `for_inference`; the mesh takes all devices.
        rows: number of rows that are computed at a time, by stage.
        adapter: shapes of a new adapter; by default the folder's adapter is trained.
        unused: components of the folder that are not loaded.
        copies: as for `training_bytes`.

    Raises:
        ShardingError: as for `for_inference`, or a stage's rows do not divide over the mesh.
    """
    devices = jax.devices()
    # Free GPU memory differs a little between processes, which must decide alike.
    memory = multihost.broadcast_json("memory", lambda: memory_of(devices[0]))
    base = shapes_of(folder, dtype)
    trained = base.pop("adapter", None) if adapter is None else adapter
    base = {name: shapes for name, shapes in base.items() if name not in unused}
    if text != "auto":
        mesh = make_mesh(parse(text), devices)
    else:
        sizes = training_sizes(base, trained, rows.values(), len(devices), memory, copies)
        mesh = make_mesh(sizes, devices)
    if multihost.is_multiprocess() and mesh.size < len(devices):
        raise ShardingError(
            f"a mesh of {describe(mesh)} leaves out {len(devices) - mesh.size} of {len(devices)} "
            "devices; several processes need all, and batches that divide by data x fsdp"
        )
    check_rows(rows, mesh)
    return mesh, memory is None or base_fits_whole(base, trained, mesh, memory, copies)


def base_fits_whole(
    base: Mapping[str, Any],
    adapter: Any,
    mesh: Mesh | AbstractMesh,
    memory: float,
    copies: float = ADAMW_COPIES,
) -> bool:
    """Return whether each device has memory for the whole base and its shard of the state."""
    needed = training_bytes(base, adapter, mesh, replicate=True, copies=copies)
    return needed < MEMORY_FRACTION * memory


def check_rows(rows: Mapping[str, int], mesh: Mesh) -> None:
    """Raise ShardingError, naming the stage, where its rows do not divide over data and fsdp."""
    for name, count in rows.items():
        if count % (mesh.shape["data"] * mesh.shape["fsdp"]):
            raise ShardingError(
                f"{name}: batch / accumulate is {count}, which does not divide by data="
                f"{mesh.shape['data']} x fsdp={mesh.shape['fsdp']}; change one of them"
            )


def inference_mesh(
    modules: Mapping[str, Any], local: Sequence[Any], every: Sequence[Any], memory: float
) -> Mesh:
    """Return a mesh of one process's devices if they are enough, and otherwise of all.

    Args:
        modules: as for `inference_sizes`, and so are the errors.
        local: devices of one process.
        every: devices of all processes.
        memory: bytes of each device.
    """
    try:
        return make_mesh(inference_sizes(modules, len(local), memory), local)
    except ShardingError:
        if len(local) == len(every):
            raise
        return make_mesh(inference_sizes(modules, len(every), memory), every)


def inference_sizes(modules: Mapping[str, Any], count: int, memory: float) -> Sizes:
    """Return the least `tensor` with which the weights fit, and the most `context` beside it.

    FSDP would all-gather the weights at every step; tensor parallelism only communicates
    activations, and context parallelism fewer of them.

    Args:
        modules: components by name, shapes in place of arrays.
        count: number of devices.
        memory: bytes of each device.

    Raises:
        ShardingError: no mesh of the devices holds the model; says how many devices would.
    """

    heads = modules["transformer"].config.num_attention_heads

    def shapes(count: int) -> Iterable[Sizes]:
        return (
            {"tensor": t, "context": c}
            for t in _divisors(count)
            for c in reversed(_divisors(count // t))
            if heads % (t * c) == 0
        )

    def needed(mesh: AbstractMesh) -> int:
        return stored_bytes(dict(modules), mesh)

    return _first(shapes, needed, count, memory, [MEMORY_FRACTION])


def training_sizes(
    base: Mapping[str, Any],
    adapter: Any,
    rows: Iterable[int],
    count: int,
    memory: float | None,
    copies: float = ADAMW_COPIES,
) -> Sizes:
    """Return the least `fsdp` with which the state fits, and `data` for the other devices.

    `rows` are the numbers of rows of the stages, which must divide by the mesh; devices beyond the
    largest such mesh stay unused. Other arguments and errors as for `inference_sizes`.
    """
    count = max(d for d in _divisors(count) if all(r % d == 0 for r in rows))
    if memory is None:
        return dict.fromkeys(AXES, 1) | {"data": count}

    def shapes(count: int) -> Iterable[Sizes]:
        return ({"data": count // f, "fsdp": f} for f in _divisors(count))

    def needed(mesh: AbstractMesh) -> int:
        return min(
            training_bytes(base, adapter, mesh, replicate=replicate, copies=copies)
            for replicate in (True, False)
        )

    return _first(shapes, needed, count, memory, [MEMORY_FRACTION, TIGHT_FRACTION])


def training_bytes(
    base: Mapping[str, Any],
    adapter: Any,
    mesh: Mesh | AbstractMesh,
    *,
    replicate: bool,
    copies: float = ADAMW_COPIES,
) -> int:
    """Return the bytes of the base and the training state on each device.

    `copies` is the size of the state and the gradient over that of the float32 parameters.
    """
    params = stored_bytes(with_dtype(adapter, jnp.float32), mesh)
    return stored_bytes(dict(base), mesh, replicate=replicate) + round(copies * params)


def memory_of(device: Any) -> float | None:
    """Return the bytes of memory of a device; None for a CPU."""
    chip = Chip.of(device)
    if chip is not None:
        return chip.memory
    stats = None if device.platform == "cpu" else device.memory_stats()
    return float(stats["bytes_limit"]) if stats and "bytes_limit" in stats else None


def shapes_of(folder: ModelFolder | Path | str, dtype: Any) -> dict[str, Any]:
    """Return the components of a MODEL folder, shapes in place of arrays."""
    opened = ModelFolder.open(folder)
    return shapes({k: read_config(opened, k) for k in opened.components if k in COMPONENTS}, dtype)


def published(dtype: Any) -> dict[str, Any]:
    """Return every component at its published size, shapes in place of arrays."""
    return shapes(published_configs(), dtype)


def published_configs() -> dict[str, Any]:
    """Return the config of every component at its published size."""
    return {component: CONFIGS[name] for component, name in PUBLISHED.items()}


def shapes(configs: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Return the components of configs, shapes in place of arrays."""
    flux = configs.get("transformer")
    return {k: abstract(k, config, flux, dtype) for k, config in configs.items()}


def _divisors(n: int) -> Sequence[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _first(
    shapes: Callable[[int], Iterable[Sizes]],
    needed: Callable[[AbstractMesh], int],
    count: int,
    memory: float,
    fractions: Sequence[float],
) -> Sizes:
    """Return the first sizes with which a model can be sharded and fits.

    Args:
        shapes: sizes to try for a number of devices.
        needed: bytes on each device of a mesh.
        count: number of devices.
        memory: bytes of each device.
        fractions: of the memory; each only where no sizes fit with the one before.

    Raises:
        ShardingError: there are none; says how many devices would do.
    """
    where = f"no mesh of {count} devices of {memory / 1e9:.0f} GB holds the model"
    why = "it does not fit"
    for number in (count, *(n for n in COUNTS if n > count)):
        for fraction, shape in product(fractions, shapes(number)):
            sizes = dict.fromkeys(AXES, 1) | shape
            types = (AxisType.Auto,) * len(AXES)
            mesh = AbstractMesh(tuple(sizes.values()), AXES, axis_types=types)
            try:
                fits = needed(mesh) < fraction * memory
            except ShardingError as error:
                why = str(error)
                continue
            if fits and number > count:
                raise ShardingError(f"{where}: {why}; {number} would, as {describe(mesh)}")
            if fits:
                return sizes
    raise ShardingError(f"{where}: {why}")
