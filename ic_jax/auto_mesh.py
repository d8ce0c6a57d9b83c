"""Which mesh to take: what was asked for, or by what the devices are, how many and how large."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from ic_jax import multihost
from ic_jax.config import CONFIGS, FluxConfig
from ic_jax.devices import Chip
from ic_jax.sharding import AXES, ShardingError, describe, make_mesh, parse, stored_bytes
from ic_jax.weights.loading import COMPONENTS, abstract, read_config
from ic_jax.weights.model_folder import ModelFolder

# Of a device's memory; what is left is for activations. Plans (docs/sharding.md) say more.
SHARE_FOR_WEIGHTS = 0.65
SHARE_FOR_STATE = 0.65

PUBLISHED = {  # which config a published component has
    "transformer": "flux-dev",
    "adapter": "instantcharacter",
    "siglip": "siglip-so400m-384",
    "dinov2": "dinov2-giant",
    "t5": "t5-xxl",
    "clip": "clip-l",
    "vae": "flux-vae",
}

Sizes = dict[str, int]


def for_inference(text: str, folder: ModelFolder | Path | str, dtype: Any) -> Mesh | None:
    """The mesh that `text` says ("auto" or "data=2,tensor=4") for a MODEL folder in `dtype`.

    Of several hosts each takes a mesh of its own devices where that is enough, and all take one
    mesh together where it is not. None is one device. "auto" takes one where nothing is known of
    the devices' memory.

    Raises:
        ShardingError: there is no such mesh, or nothing that fits.
    """
    own, every = jax.local_devices(), jax.devices()
    if text != "auto":
        sizes = parse(text)
        count = math.prod(sizes.values())
        if len(own) < count < len(every):
            raise ShardingError(
                f"mesh {text!r} has {count} devices: give one within a host's {len(own)}, or of "
                f"all {len(every)}"
            )
        return make_mesh(sizes, own if count <= len(own) else every)
    # What a GPU has left differs a little between hosts, and they must decide alike.
    memory = multihost.broadcast_json("memory", lambda: memory_of(own[0]))
    if len(every) == 1 or memory is None:
        return None
    shapes = shapes_of(folder, dtype)
    try:
        sizes, devices = inference_sizes(shapes, len(own), memory), own
    except ShardingError:
        if len(own) == len(every):
            raise
        sizes, devices = inference_sizes(shapes, len(every), memory), every
    return make_mesh(sizes, devices) if math.prod(sizes.values()) > 1 else None


def for_training(
    text: str,
    folder: ModelFolder | Path | str,
    dtype: Any,
    rows: Mapping[str, int],
    adapter: Any = None,
) -> tuple[Mesh, bool]:
    """The mesh for a recipe, and whether every device has memory for the whole base.

    Args:
        rows: by stage, how many rows are computed at a time.
        adapter: shapes of a fresh one; the folder's if there is none.

    Raises:
        ShardingError: as `for_inference`, or a stage's rows do not divide over the mesh.
    """
    devices = jax.devices()
    # What a GPU has left differs a little between hosts, and they must decide alike.
    memory = multihost.broadcast_json("memory", lambda: memory_of(devices[0]))
    base = shapes_of(folder, dtype)
    trained = base.pop("adapter", None) if adapter is None else adapter
    if text != "auto":
        mesh = make_mesh(parse(text), devices)
    else:
        sizes = training_sizes(base, trained, rows.values(), len(devices), memory)
        mesh = make_mesh(sizes, devices)
    if multihost.is_multiprocess() and mesh.size < len(devices):
        raise ShardingError(
            f"a mesh of {describe(mesh)} leaves out {len(devices) - mesh.size} of {len(devices)} "
            "devices; over several hosts take all, and batches that divide by data x fsdp"
        )
    check_rows(rows, mesh)
    return mesh, memory is None or base_fits_whole(base, trained, mesh, memory)


def base_fits_whole(base: Mapping[str, Any], adapter: Any, mesh: Mesh, memory: float) -> bool:
    """Whether every device has memory for a copy of the base beside its share of the state."""
    return training_bytes(base, adapter, mesh, replicate=True) < SHARE_FOR_STATE * memory


def check_rows(rows: Mapping[str, int], mesh: Mesh) -> None:
    """ShardingError names the stage whose rows do not divide over data and fsdp."""
    for name, count in rows.items():
        if count % (mesh.shape["data"] * mesh.shape["fsdp"]):
            raise ShardingError(
                f"{name}: batch / accumulate is {count}, which does not divide by data="
                f"{mesh.shape['data']} x fsdp={mesh.shape['fsdp']}; change one of them"
            )


def inference_sizes(modules: Mapping[str, Any], count: int, memory: float) -> Sizes:
    """As little `tensor` as makes the weights fit, then `context` for speed.

    Weights in pieces would be sent to every device at every step; heads and hidden channels only
    send activations, and tokens fewer still.
    """

    def fits(mesh: AbstractMesh) -> bool:
        return stored_bytes(dict(modules), mesh) < SHARE_FOR_WEIGHTS * memory

    heads = modules["transformer"].config.num_attention_heads
    shapes = (
        {"tensor": t, "context": c}
        for t in _divisors(count)
        for c in reversed(_divisors(count // t))
        if heads % (t * c) == 0
    )
    return _first(shapes, fits, f"{count} devices of {memory / 1e9:.0f} GB")


def training_sizes(
    base: Mapping[str, Any], adapter: Any, rows: Iterable[int], count: int, memory: float | None
) -> Sizes:
    """As little `fsdp` as makes the state fit, the rest `data`, as far as the rows divide."""
    count = max(d for d in _divisors(count) if all(r % d == 0 for r in rows))
    if memory is None:
        return dict.fromkeys(AXES, 1) | {"data": count}

    def fits(mesh: AbstractMesh) -> bool:
        return any(
            training_bytes(base, adapter, mesh, replicate=replicate) < SHARE_FOR_STATE * memory
            for replicate in (True, False)
        )

    shapes = ({"data": count // f, "fsdp": f} for f in _divisors(count))
    return _first(shapes, fits, f"{count} devices of {memory / 1e9:.0f} GB")


def training_bytes(
    base: Mapping[str, Any], adapter: Any, mesh: Mesh | AbstractMesh, *, replicate: bool
) -> int:
    """Weights, masters, their average, two moments and the gradient on each device."""
    masters = _cast(adapter, jnp.float32)
    return stored_bytes(dict(base), mesh, replicate=replicate) + 5 * stored_bytes(masters, mesh)


def memory_of(device: Any) -> float | None:
    """Bytes of memory of a device; None for a CPU."""
    chip = Chip.of(device)
    if chip is not None:
        return chip.memory
    stats = None if device.platform == "cpu" else device.memory_stats()
    return float(stats["bytes_limit"]) if stats and "bytes_limit" in stats else None


def shapes_of(folder: ModelFolder | Path | str, dtype: Any) -> dict[str, Any]:
    """The components of a MODEL folder, shapes in place of arrays."""
    opened = ModelFolder.open(folder)
    configs = {k: read_config(opened, k) for k in opened.components if k in COMPONENTS}
    return {
        kind: _cast(abstract(kind, config, configs.get("transformer")), dtype)
        for kind, config in configs.items()
    }


def published(dtype: Any) -> dict[str, Any]:
    """Every component at its published size, shapes in place of arrays."""
    flux = CONFIGS[PUBLISHED["transformer"]]
    assert isinstance(flux, FluxConfig)
    return {k: _cast(abstract(k, CONFIGS[name], flux), dtype) for k, name in PUBLISHED.items()}


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def _divisors(n: int) -> Sequence[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _first(shapes: Iterable[Sizes], fits: Callable[[AbstractMesh], bool], where: str) -> Sizes:
    """The first mesh that a model can be laid out on and fits."""
    why = "it does not fit"
    for shape in shapes:
        sizes = dict.fromkeys(AXES, 1) | shape
        mesh = AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        try:
            if fits(mesh):
                return sizes
        except ShardingError as error:
            why = str(error)
    raise ShardingError(f"no mesh of {where} holds the model: {why}")
