"""Sharding of parameters and activations over a mesh: one table, for TPU and GPU alike.

A mesh has four axes. `data` and `fsdp` both shard the batch; `fsdp` also shards the parameters,
which are all-gathered where they are used (ZeRO, arXiv 1910.02054); `tensor` shards attention heads
and hidden channels (Megatron, arXiv 1909.08053); `context` shards the tokens of a picture (Ulysses,
arXiv 2309.14509).

A program is laid out on the mesh that `jax.set_mesh` has set. Without a mesh `constrain`,
`shard_batch` and `gathered` change nothing, so that the models are the same on one device.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

AXES = ("data", "fsdp", "tensor", "context")

# From a logical axis to the mesh axes that shard it; an axis without a name is not sharded.
RULES: Mapping[str, tuple[str, ...]] = {
    # of parameters
    "layers": (),  # a scan reads one block after the other
    "conv_in": (),  # the VAE is small
    "conv_out": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    # The encoders and the projector run once per picture, and their numbers of heads (42, 20, 16,
    # 12) divide by few meshes: they are stored sharded over all axes, and of what they compute only
    # the batch is sharded.
    "width": ("fsdp", "tensor", "context"),
    # of activations
    "batch": ("data", "fsdp"),
    "tokens": ("context",),
}
GATHERED = ("embed", "width")  # stored sharded, all-gathered where they are used

Axes = Sequence[str | None]


class ShardingError(ValueError):
    """A mesh that is misspelt or too large, or that a model or batch cannot be sharded over."""


def parse(text: str) -> dict[str, int]:
    """Return the size of each axis from a text such as "data=2,fsdp=4"; the default size is 1.

    Raises:
        ShardingError: names the part that is not understood.
    """
    sizes = dict.fromkeys(AXES, 1)
    seen = set()
    for item in text.split(","):
        name, _, size = (part.strip() for part in item.partition("="))
        if name not in AXES or name in seen or not size.isdecimal() or int(size) < 1:
            raise ShardingError(
                f"mesh {text!r}: {item!r} is not understood; write each of {', '.join(AXES)} at "
                "most once, such as data=2,fsdp=4"
            )
        seen.add(name)
        sizes[name] = int(size)
    return sizes


def describe(mesh: Mesh | AbstractMesh) -> str:
    """Return the text that `parse` reads, with the axes of more than one device."""
    return ",".join(f"{k}={v}" for k, v in mesh.shape.items() if v > 1) or "data=1"


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh over the first of the devices (by default all of JAX).

    Raises:
        ShardingError: there are too few devices, or the first TPU chips form no rectangle.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(sizes[name] for name in AXES)
    count = math.prod(shape)
    if count > len(devices):
        product = " x ".join(map(str, shape))
        raise ShardingError(f"a mesh of {product} needs {count} devices; there are {len(devices)}")
    places = [device.coords for device in devices[:count] if device.platform == "tpu"]
    if places and math.prod(np.ptp(places, axis=0) + 1) != count:
        raise ShardingError(
            f"a mesh of {count} of {len(devices)} TPU chips: they form no rectangle or box; take "
            "a power of two"
        )
    types = (AxisType.Auto,) * len(AXES)
    # An axis of a torus may be split: in 4 x 4 x 4 chips, 2 can be an axis of the mesh.
    grid = mesh_utils.create_device_mesh(shape, devices[:count], allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def shardings(tree: Any, mesh: Mesh | AbstractMesh, *, replicate: bool = False) -> Any:
    """Return the shardings of a tree: parameters by their logical axes, other leaves replicated.

    Args:
        tree: modules, or a tree that contains modules, such as a training state; of arrays or
            `jax.ShapeDtypeStruct`.
        mesh: the mesh, or its shape alone.
        replicate: do not shard the axes of GATHERED: every device stores a copy of a frozen base.

    Raises:
        ShardingError: names the parameter, its axis and the size that does not divide.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, P())
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return parameter_sharding(name, leaf, mesh, replicate=replicate)

    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    # A variable has one leaf, its value, so the order is that of the leaves of `tree`.
    return jax.tree.unflatten(jax.tree.structure(tree), [sharding(*pair) for pair in pairs])


def parameter_sharding(
    path: str, variable: Any, mesh: Mesh | AbstractMesh, *, replicate: bool = False
) -> NamedSharding:
    """Return the sharding of a parameter, an `nnx.Variable` with metadata `axes` (and `heads`).

    Raises:
        ShardingError: names `path`, the axis and the size that does not divide.
    """
    spec = []
    for axis, size in zip(variable.axes, variable.shape, strict=True):
        names = () if axis is None or (replicate and axis in GATHERED) else RULES[axis]
        parts = math.prod(mesh.shape[name] for name in names)
        heads = getattr(variable, "heads", None) if axis == "heads" else None
        if (heads or size) % parts:
            count = f"{heads} heads" if heads else f"size {size}"
            raise ShardingError(
                f"{path}: axis {axis}, {count}, does not divide by "
                f"{' x '.join(f'{name}={mesh.shape[name]}' for name in names)}; take another mesh"
            )
        spec.append(names or None)
    return NamedSharding(mesh, P(*spec))


def stored_bytes(tree: Any, mesh: Mesh | AbstractMesh, *, replicate: bool = False) -> int:
    """Return the bytes of a tree on each device; arguments and errors as of `shardings`."""
    where = jax.tree.leaves(shardings(tree, mesh, replicate=replicate))
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), where, strict=True)
    )


def to_global_array(array: np.ndarray, sharding: NamedSharding, dtype: Any) -> jax.Array:
    """Put a NumPy array on the devices, cast to `dtype`.

    From a memory-mapped array, only the shards of this process are read.
    """
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.asarray(array[index]).astype(dtype, copy=False)
    )


def put_like(value: Array | np.ndarray, array: Array) -> Array:
    """Put a value where `array` is; on the default device if that is where JAX left the array.

    An array that was put on a device by name would make JAX compile a program again.
    """
    return jax.device_put(value, array.sharding if array.committed else None)


def replicate_to_mesh(tree: Any, sharding: NamedSharding) -> Any:
    """Put NumPy arrays, equal in all processes, on the devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # device_put would first compare the values of all processes, with a program for each array.
    return jax.tree.map(lambda x: to_global_array(np.asarray(x), sharding, x.dtype), tree)


def gather_to_host(tree: Any) -> Any:
    """Return the arrays as NumPy, gathered from all processes.

    Collective: every process must call it.
    """

    def gather(x: jax.Array) -> np.ndarray:
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(gather, tree)


def local_rows(sharding: NamedSharding, count: int) -> list[int]:
    """Return which of `count` rows this process's devices hold; processes may share rows."""
    indices = sharding.addressable_devices_indices_map((count,)).values()
    return sorted({row for index in indices if index for row in range(count)[index[0]]})


def global_from_local_rows(
    rows: np.ndarray, numbers: np.ndarray, count: int, sharding: NamedSharding
) -> Array:
    """Return the array of `count` rows to which each process contributes its local rows.

    Args:
        rows: this process's rows, at least its `local_rows`.
        numbers: positions of these rows in the array, ascending.
        count: rows of the array.
        sharding: of the array; shards the first axis only.
    """

    def shard(index: Any) -> np.ndarray:
        first, end, _ = index[0].indices(count)
        at = int(np.searchsorted(numbers, first))
        return rows[at : at + end - first]

    return jax.make_array_from_callback((count, *rows.shape[1:]), sharding, shard)


def mesh_of(tree: Any) -> Mesh | None:
    """Return the mesh that the arrays of a tree lie on; None if it is not one of `make_mesh`."""
    for leaf in jax.tree.leaves(tree):
        mesh = getattr(leaf.sharding, "mesh", None)
        if isinstance(mesh, Mesh) and mesh.axis_names == AXES:
            return mesh
    return None


def current() -> AbstractMesh | None:
    """Return the mesh that `jax.set_mesh` has set, if it has the axes of `make_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES else None


def context_size() -> int:
    """Return the size of the context axis: the number of shards of a picture's tokens."""
    mesh = current()
    return 1 if mesh is None else mesh.shape["context"]


def activation_spec(mesh: AbstractMesh, shape: Sequence[int], axes: Axes) -> P:
    """Return the partition spec of an activation with named axes.

    A mesh axis that does not divide the size is left out: a single picture is computed by every
    device along the axes of the batch.
    """
    spec = []
    for size, axis in zip(shape, axes, strict=True):
        names: tuple[str, ...] = ()
        for name in RULES[axis] if axis else ():
            parts = math.prod(mesh.shape[n] for n in (*names, name))
            names = (*names, name) if size % parts == 0 else names
        spec.append(names or None)
    return P(*spec)


def constrain(x: Array, *axes: str | None) -> Array:
    """Constrain the sharding of an activation, by the names of its axes."""
    mesh = current()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, axes))


def shard_batch(x: Array) -> Array:
    """Constrain an activation to be sharded along its first axis, the batch, and no other.

    A scan's carry needs this at both ends of the body: without it the compiler chooses any layout.
    """
    return constrain(x, "batch", *[None] * (x.ndim - 1))


def gathered(variable: Any, dtype: Any) -> Array:
    """Return a parameter's value cast to `dtype`, then all-gathered along the axes of GATHERED.

    The gradient is scattered along them.
    """
    value = variable[...].astype(dtype)
    mesh = current()
    if mesh is None:
        return value
    axes = variable.axes[-value.ndim :]  # within a scan, without "layers"
    used = P(*(RULES[a] or None if a and a not in GATHERED else None for a in axes))
    stored = P(*(RULES[a] or None if a else None for a in axes))
    return _gather(value, used, stored)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: Array, used: P, stored: P) -> Array:
    return jax.lax.with_sharding_constraint(x, used)


def _gather_forward(x: Array, used: P, stored: P) -> tuple[Array, None]:
    return _gather(x, used, stored), None


def _gather_backward(used: P, stored: P, _: None, gradient: Array) -> tuple[Array]:
    # The transpose of the constraint itself would sum the full gradient on every device.
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_gather.defvjp(_gather_forward, _gather_backward)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
