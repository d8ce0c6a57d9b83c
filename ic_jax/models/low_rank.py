"""LoRAs beside the linear maps of a model, whatever form its blocks have.

A map has its published name, with a star for the number of the block: one pair of matrices serves a
whole stack of blocks, with a leading axis over them.
"""

from collections.abc import Iterator, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ic_jax.models.layers import Axes, LinearOfParts, per_channel
from ic_jax.models.unstacked import FUSED, FusedLinear, UnstackedBlocks
from ic_jax.sharding import gathered, mesh_of, parameter_sharding, put_like, to_global_array


class LoraLayer(nnx.Module):
    """LoRA of a linear map: scale * ((x @ a) @ b + bias), added to its output (arXiv 2106.09685).

    Published `lora_A.weight` and `lora_B.weight` are the transposes; few files have `lora_B.bias`.
    """

    def __init__(
        self,
        a: Float[Array, "*l i r"],
        b: Float[Array, "*l r o"],
        bias: Float[Array, "*l o"] | None = None,
        *,
        axes: Axes,
        scale: float = 1.0,
    ):
        """Create the map; `axes` are those of the kernel, and `scale` is alpha / rank."""
        self.a = nnx.Param(a, axes=(*axes[:-1], None))
        self.b = nnx.Param(b, axes=(*axes[:-2], None, axes[-1]))
        self.bias = None if bias is None else nnx.Param(bias, axes=(*axes[:-2], axes[-1]))
        self.scale = scale

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = x @ gathered(self.a, x.dtype) @ gathered(self.b, x.dtype)
        if self.bias is not None:
            y = y + per_channel(gathered(self.bias, x.dtype), y)
        return y if self.scale == 1.0 else self.scale * y


class LowRank(NamedTuple):
    """Matrices of one map, and of all its blocks; their product is added to the kernel."""

    a: np.ndarray  # [*l, in, rank]
    b: np.ndarray  # [*l, rank, out]
    bias: np.ndarray | None  # [*l, out]


class _Place(NamedTuple):
    """Module that computes a published map, of one block or of a stack."""

    module: Any
    group: str | None  # within a fused map
    block: int | None  # None: of no blocks, or of all


def attach(model: Any, maps: Mapping[str, LowRank]) -> None:
    """Put the matrices beside the maps of `model`, and remove those that are there.

    They take the dtype and the mesh of the kernels; kernels are not touched. A model of shapes
    gets shapes.
    """
    detach(model)
    for name, low_rank in maps.items():
        for place in _places(model, name):
            layer = _layer(name, place, low_rank)
            if place.group is None:
                place.module.low_rank = nnx.data(layer)  # flax treats the None before as static
            else:
                layers = place.module.low_rank or nnx.Dict({})
                layers[place.group] = layer
                place.module.low_rank = nnx.data(layers)


def detach(model: Any) -> None:
    """Remove all matrices, so that `model` is what it was before."""
    for _, module in nnx.iter_modules(model):
        if getattr(module, "low_rank", None) is not None:
            setattr(module, "low_rank", nnx.static(None))  # noqa: B010  not of every module


def _places(model: Any, name: str) -> Iterator[_Place]:
    head, star, tail = name.partition(".*.")
    owner = _get(model, head.split(".") if star else head.split(".")[:-1])
    if not star:
        yield _place(owner, head.rpartition(".")[2], None)
        return
    *parents, last = tail.split(".")
    if isinstance(owner, UnstackedBlocks):
        for number, block in enumerate(owner.list):
            yield _place(_get(block, parents), last, number)
    else:
        yield _place(_get(owner.blocks, parents), last, None)


def _place(owner: Any, name: str, block: int | None) -> _Place:
    for fused, names in FUSED.items():
        if name in names and hasattr(owner, fused):
            return _Place(getattr(owner, fused), name, block)
    return _Place(getattr(owner, name), None, block)


def _get(owner: Any, names: list[str]) -> Any:
    return reduce(getattr, names, owner)


def _layer(name: str, place: _Place, low_rank: LowRank) -> LoraLayer:
    module = place.module
    kernel = module.kernel_0 if isinstance(module, LinearOfParts) else module.kernel
    axes = kernel.axes
    if isinstance(module, FusedLinear):
        axes = (axes[0], axes[2])
    at: Any = () if place.block is None else place.block
    arrays = [x[at] for x in low_rank if x is not None]
    if isinstance(kernel.get_value(), jax.ShapeDtypeStruct):
        zeros = [jax.ShapeDtypeStruct(x.shape, kernel.dtype) for x in arrays]
        return nnx.eval_shape(lambda *x: LoraLayer(*x, axes=axes), *zeros)
    stored = ((*axes[:-1], None), (*axes[:-2], None, axes[-1]), (*axes[:-2], axes[-1]))
    return LoraLayer(*map(partial(_put, name, kernel), arrays, stored), axes=axes)


def _put(name: str, kernel: Any, value: np.ndarray, axes: Axes) -> Array:
    """Put a matrix where the kernel is, in its dtype."""
    if (mesh := mesh_of(kernel)) is None:
        return put_like(value.astype(kernel.dtype), kernel[...])
    sharding = parameter_sharding(name, nnx.Param(value, axes=axes), mesh)
    return to_global_array(value, sharding, kernel.dtype)
