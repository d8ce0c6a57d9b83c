"""Where every array lives on a mesh of devices: one table, for TPU and GPU alike.

A mesh has four axes. `data` and `fsdp` both split the batch; `fsdp` also splits the parameters,
each of which is put together where it is used (ZeRO, arXiv 1910.02054); `tensor` splits attention
heads and hidden channels (Megatron, arXiv 1909.08053); `context` splits the tokens of a picture
(Ulysses, arXiv 2309.14509).

A program is laid out while `jax.set_mesh` is in force. Without a mesh every function here leaves
its argument alone, so that the models are the same on one device.
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

# From a logical axis to the mesh axes that split it; an axis without a name is whole.
RULES: Mapping[str, tuple[str, ...]] = {
    # of parameters
    "layers": (),  # a scan takes one block after the other
    "conv_in": (),  # the VAE is small
    "conv_out": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    # The encoders and the projector run once a picture, and their heads (42, 20, 16, 12) fit
    # few meshes: they are stored in pieces over all axes and computed by rows of the batch.
    "width": ("fsdp", "tensor", "context"),
    # of activations
    "batch": ("data", "fsdp"),
    "tokens": ("context",),
}
GATHERED = ("embed", "width")  # stored in pieces, used whole

Axes = Sequence[str | None]


class ShardingError(ValueError):
    """A mesh that does not exist, or that a model cannot be laid out on."""


def parse(text: str) -> dict[str, int]:
    """Sizes by axis of "data=2,fsdp=4"; axes that are not named have size 1.

    Raises:
        ShardingError: names what is not understood.
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


def describe(mesh: Mesh) -> str:
    """The text that `parse` reads: the axes of more than one device."""
    return ",".join(f"{k}={v}" for k, v in mesh.shape.items() if v > 1) or "data=1"


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over the first devices; ShardingError if there are too few."""
    devices = jax.devices() if devices is None else devices
    shape = tuple(sizes[name] for name in AXES)
    count = math.prod(shape)
    if count > len(devices):
        product = " x ".join(map(str, shape))
        raise ShardingError(f"a mesh of {product} needs {count} devices; there are {len(devices)}")
    types = (AxisType.Auto,) * len(AXES)
    # An axis of a torus may be split: of 4 x 4 x 4 chips two can be an axis of their own.
    grid = mesh_utils.create_device_mesh(shape, devices[:count], allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def shardings(tree: Any, mesh: Mesh | AbstractMesh, *, replicate: bool = False) -> Any:
    """A tree like `tree`, of shardings: parameters by their logical axes, the rest everywhere.

    Args:
        tree: modules, or what holds some, such as a training state; shapes will do.
        replicate: gathered axes are stored whole (a base that every device keeps a copy of).

    Raises:
        ShardingError: names the parameter, its axis and the size that does not divide.
    """

    def one(path: tuple, leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, P())
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return parameter_sharding(name, leaf, mesh, replicate=replicate)

    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    # A variable has one leaf, its value: the order is that of the tree's own leaves.
    return jax.tree.unflatten(jax.tree.structure(tree), [one(*pair) for pair in pairs])


def parameter_sharding(
    path: str, variable: Any, mesh: Mesh | AbstractMesh, *, replicate: bool = False
) -> NamedSharding:
    """The sharding of one parameter; `variable` has a shape, `axes` and perhaps `heads`."""
    spec = []
    for axis, size in zip(variable.axes, variable.shape, strict=True):
        names = () if axis is None or (replicate and axis in GATHERED) else RULES[axis]
        parts = math.prod(mesh.shape[name] for name in names)
        heads = getattr(variable, "heads", None) if axis == "heads" else None
        if (heads or size) % parts:
            what = f"{heads} heads" if heads else f"size {size}"
            raise ShardingError(
                f"{path}: axis {axis}, {what}, does not divide by "
                f"{' x '.join(f'{name}={mesh.shape[name]}' for name in names)}; take another mesh"
            )
        spec.append(names or None)
    return NamedSharding(mesh, P(*spec))


def stored_bytes(tree: Any, mesh: Mesh | AbstractMesh, *, replicate: bool = False) -> int:
    """Bytes of some modules on each device; arguments and errors as for `shardings`."""
    leaves, places = (
        jax.tree.leaves(tree),
        jax.tree.leaves(shardings(tree, mesh, replicate=replicate)),
    )
    return sum(
        math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, place in zip(leaves, places, strict=True)
    )


def to_global_array(array: np.ndarray, sharding: NamedSharding, dtype: Any) -> jax.Array:
    """A host array (mapped from a file, say) on the devices, cast to `dtype`.

    Of a mapped array only this host's own pieces are read.
    """
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.asarray(array[index]).astype(dtype, copy=False)
    )


def replicate_to_mesh(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays, the same on every host, on the devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # device_put would first compare the values of all hosts, with a program for each array.
    return jax.tree.map(lambda x: to_global_array(np.asarray(x), sharding, x.dtype), tree)


def gather_to_host(tree: Any) -> Any:
    """Arrays on the host, whole: all hosts call this at the same place of their program."""

    def one(x: jax.Array) -> np.ndarray:
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)


def local_rows(sharding: NamedSharding, count: int) -> list[int]:
    """Which of `count` rows lie on this host's devices; several hosts may hold the same."""
    pieces = sharding.addressable_devices_indices_map((count,)).values()
    return sorted({row for piece in pieces if piece for row in range(count)[piece[0]]})


def global_from_local_rows(
    rows: np.ndarray, held: np.ndarray, count: int, sharding: NamedSharding
) -> Array:
    """The array of `count` rows of which this host has those that it holds, in order."""

    def piece(index: Any) -> np.ndarray:
        first, end, _ = index[0].indices(count)
        at = int(np.searchsorted(held, first))
        return rows[at : at + end - first]

    return jax.make_array_from_callback((count, *rows.shape[1:]), sharding, piece)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the parameters of some modules lie on."""
    for leaf in jax.tree.leaves(tree):
        mesh = getattr(leaf.sharding, "mesh", None)
        if isinstance(mesh, Mesh) and mesh.axis_names == AXES:
            return mesh
    return None


def current() -> AbstractMesh | None:
    """The mesh in force, if it is one of ours."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES else None


def context_size() -> int:
    """Into how many parts the tokens of a picture are split."""
    mesh = current()
    return 1 if mesh is None else mesh.shape["context"]


def activation_spec(mesh: AbstractMesh, shape: Sequence[int], axes: Axes) -> P:
    """How an activation is split; a mesh axis that does not divide its size is left out, so a
    single picture is computed on every part of the batch's axes."""
    spec = []
    for size, axis in zip(shape, axes, strict=True):
        names: tuple[str, ...] = ()
        for name in RULES[axis] if axis else ():
            parts = math.prod(mesh.shape[n] for n in (*names, name))
            names = (*names, name) if size % parts == 0 else names
        spec.append(names or None)
    return P(*spec)


def constrain(x: Array, *axes: str | None) -> Array:
    """Lay out an activation by the names of its axes."""
    mesh = current()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, axes))


def shard_batch(x: Array) -> Array:
    """An activation whose rows lie over the batch's axes, each of them whole.

    What a scan carries wants this at both ends of its body: the compiler may lay out the carry as
    it likes in between.
    """
    return constrain(x, "batch", *[None] * (x.ndim - 1))


def gathered(variable: Any, dtype: Any) -> Array:
    """A parameter as it is used: cast, then its gathered axes whole; a gradient is scattered."""
    value = variable[...].astype(dtype)
    mesh = current()
    if mesh is None:
        return value
    axes = variable.axes[-value.ndim :]  # a scan has taken "layers" away
    used = P(*(RULES[a] or None if a and a not in GATHERED else None for a in axes))
    stored = P(*(RULES[a] or None if a else None for a in axes))
    return _gather(value, used, stored)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: Array, used: P, stored: P) -> Array:
    return jax.lax.with_sharding_constraint(x, used)


def _gather_forward(x: Array, used: P, stored: P) -> tuple[Array, None]:
    return _gather(x, used, stored), None


def _gather_backward(used: P, stored: P, _: None, gradient: Array) -> tuple[Array]:
    # The constraint's own transpose would sum the gradient whole on every device.
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_gather.defvjp(_gather_forward, _gather_backward)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
