"""Unstacked form of FLUX and its adapter, for drawing on GPUs without copies of weights.

Of stacked blocks XLA for GPUs copies every weight out of its stack before a product, and it joins
the weights of products of one input: 40 of the 144 GB that a full-size step moves. Here each block
has arrays of its own, and projections of one input are one array. It takes longer to compile, and
training and TPUs keep the scan over stacked blocks.

The published parameters stay readable and writable, by the same paths and as the same stacks:
`published_parameters`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ic_jax.models.adapter import Adapter
from ic_jax.models.flux import Flux, JointAttention, SingleBlock
from ic_jax.models.heads import Heads, split_into_heads
from ic_jax.models.image_prompt import ImagePromptAttention
from ic_jax.models.layers import Linear, LinearOfParts, Stack, product
from ic_jax.sharding import current, gathered, put_like

# Attribute of a fused map, and the published names of the maps in it.
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_kv_ip": ("to_k_ip", "to_v_ip"),
}


def compiler_options(platform: str) -> dict[str, Any]:
    """Return XLA's options to compile sampling with."""
    # XLA would join products of one input again, and copy their weights for it.
    return {"xla_gpu_dot_merger_threshold_mb": 0} if platform == "gpu" else {}


def drawing_form(flux: Flux, adapter: Adapter | None, platform: str) -> tuple[Flux, Adapter | None]:
    """Return the form of FLUX and the adapter that draws fastest; the given ones are freed."""
    if platform != "gpu":
        return split_output(flux), adapter
    return unstack_flux(flux), None if adapter is None else unstack_adapter(adapter)


def unstack_flux(flux: Flux) -> Flux:
    """Return FLUX in unstacked form; its stacks' arrays are freed one by one, and it with them."""
    flux = _copy(flux)
    flux.transformer_blocks = _unstacked(flux.transformer_blocks)
    flux.single_transformer_blocks = _unstacked(flux.single_transformer_blocks)
    return flux


def split_output(flux: Flux) -> Flux:
    """Return FLUX with the outputs of its single blocks split (`LinearOfParts`), and free it."""
    flux = _copy(flux)
    block = flux.single_transformer_blocks.blocks
    kernel = block.proj_out.kernel[...]
    block.proj_out = LinearOfParts(block.proj_out, flux.config.hidden_size)
    _free(kernel)
    return flux


def unstack_adapter(adapter: Adapter) -> Adapter:
    """Return the adapter with its image-prompt attention unstacked, as `unstack_flux` does.

    The projector keeps its stacks: it runs once per picture.
    """
    adapter = _copy(adapter)
    attention = adapter.ip_adapter
    attention.transformer_blocks = _unstacked(attention.transformer_blocks)
    attention.single_transformer_blocks = _unstacked(attention.single_transformer_blocks)
    return adapter


class FusedLinear(nnx.Module):
    """Linear maps of one input to outputs of one size, as one product."""

    def __init__(self, source: Any, name: str):
        """Fuse the maps of `source` that FUSED lists under `name`."""
        self.names = FUSED[name]
        maps: list[Linear] = [getattr(source, published) for published in self.names]
        first = maps[0]
        axes = (first.kernel.axes[0], None, first.kernel.axes[1])
        kernel = jnp.stack([m.kernel[...] for m in maps], axis=1)
        bias = jnp.stack([m.bias[...] for m in maps])  # type: ignore[index]
        self.kernel = nnx.Param(kernel, axes=axes, heads=first.kernel.heads)
        self.bias = nnx.Param(bias, axes=axes[1:], heads=first.kernel.heads)
        self.low_rank: Any = None  # LoRAs by the published name of a map, see models.low_rank

    def __call__(self, x: Float[Array, "b n i"]) -> list[Float[Array, "b n o"]]:
        outputs = self._outputs(x)
        if self.low_rank is None:
            return outputs
        pairs = zip(self.names, outputs, strict=True)
        return [y + self.low_rank[n](x) if n in self.low_rank else y for n, y in pairs]

    def _outputs(self, x: Float[Array, "b n i"]) -> list[Float[Array, "b n o"]]:
        kernel, bias = gathered(self.kernel, x.dtype), gathered(self.bias, x.dtype)
        groups, mesh = bias.shape[0], current()
        if mesh is None or mesh.shape["tensor"] == 1:  # cuBLAS adds the bias of a plain product
            y = product(x, kernel.reshape(x.shape[-1], -1)) + bias.reshape(1, 1, -1)
            return jnp.split(y, groups, axis=-1)
        y = jnp.einsum("bni,igo->bngo", x, kernel) + bias[None, None]
        return [y[:, :, group] for group in range(groups)]


class FusedJointAttention(JointAttention):
    """Attention of a block with q, k and v as one product, and those of the text as another."""

    def __init__(self, source: JointAttention):
        self.head_dim = source.head_dim
        self.norm_q, self.norm_k = source.norm_q, source.norm_k
        self.to_qkv = FusedLinear(source, "to_qkv")
        if hasattr(source, "add_q_proj"):
            self.norm_added_q, self.norm_added_k = source.norm_added_q, source.norm_added_k
            self.to_added_qkv = FusedLinear(source, "to_added_qkv")
            self.to_out, self.to_add_out = source.to_out, source.to_add_out

    def qkv(self, x: Float[Array, "b n d"]) -> tuple[Heads, ...]:
        return tuple(split_into_heads(y, self.head_dim) for y in self.to_qkv(x))

    def added_qkv(self, x: Float[Array, "b n d"]) -> tuple[Heads, ...]:
        return tuple(split_into_heads(y, self.head_dim) for y in self.to_added_qkv(x))


class FusedPromptAttention(ImagePromptAttention):
    """Image-prompt attention with keys and values as one product."""

    def __init__(self, source: ImagePromptAttention):
        self.norm_ip_q, self.norm_ip_k = source.norm_ip_q, source.norm_ip_k
        self.to_kv_ip = FusedLinear(source, "to_kv_ip")

    def keys_values(self, tokens: Float[Array, "u m c"], head_dim: int) -> tuple[Heads, ...]:
        return tuple(split_into_heads(y, head_dim) for y in self.to_kv_ip(tokens))


class UnstackedBlocks(Stack):
    """Blocks with arrays of their own, applied one after the other."""

    def __init__(self, stack: Stack):
        self.list = nnx.List([_fused(block) for block in _blocks(stack)])

    def scan(
        self, step: Callable, carry: Any, xs: Any = None, *, remat: Any = "none"
    ) -> tuple[Any, None]:
        """Apply carry, _ = step(block, carry, x) to the blocks in order; return (carry, None)."""
        for i, block in enumerate(self.list):
            row = jax.tree.map(partial(_row, i=i), xs, is_leaf=_is_unstacked)
            carry, _ = step(block, carry, row)
        return carry, None

    def map(self, name: str, function: Callable[[Any], Array]) -> Array:
        """Return function(part) of the part `name` of every block, stacked."""
        return jnp.stack([function(getattr(block, name)) for block in self.list])


def _unstacked(stack: Stack) -> Stack:
    """Return the blocks of a stack with arrays of their own; a stack of none stays as it is."""
    count = jax.tree.leaves(stack.blocks)[0].shape[0]
    return UnstackedBlocks(stack) if count else stack


def _blocks(stack: Stack) -> list[Any]:
    """Return the blocks of a stack; each stacked array is freed once it is taken apart."""
    leaves, structure = jax.tree.flatten(stack.blocks)
    rows = []
    for leaf in leaves:
        rows.append([leaf[i] for i in range(leaf.shape[0])])
        _free(leaf)
    blocks = [jax.tree.unflatten(structure, row) for row in zip(*rows, strict=True)]
    for block in blocks:
        for variable in jax.tree.leaves(block, is_leaf=_is_variable):
            variable.set_metadata(axes=variable.axes[1:])
    return blocks


def _free(array: Any) -> None:
    if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer):
        array.delete()


def _fused(block: Any) -> Any:
    if isinstance(block, ImagePromptAttention):
        return FusedPromptAttention(block)
    if isinstance(block, SingleBlock) and isinstance(block.proj_out, Linear):
        block.proj_out = LinearOfParts(block.proj_out, block.attn.to_q.kernel.shape[0])
    block.attn = FusedJointAttention(block.attn)
    return block


PARTS = {"kernel_0": "kernel", "kernel_1": "kernel"}  # of a LinearOfParts
_BLOCK_PATH = re.compile(r"(.+\.)list\.(\d+)\.(.+)")
Part = tuple[Any, Any]  # a variable, and the index of the published rows in it


@dataclass(frozen=True)
class PublishedParameter:
    """Published parameter whose rows several variables hold, as one variable.

    Attributes:
        blocks: the parts of each unstacked block, whose rows follow each other; one for a
            parameter that has no unstacked blocks.
        stacked: whether the blocks are the leading axis of the published parameter.
    """

    blocks: list[list[Part]]
    stacked: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return jax.eval_shape(lambda: self[...]).shape

    @property
    def dtype(self) -> Any:
        return self.blocks[0][0][0].dtype

    @property
    def axes(self) -> tuple[str | None, ...]:
        (variable, at), *_ = self.blocks[0]
        group = () if at is ... else (-2,)
        axes = [axis for i, axis in enumerate(variable.axes, -len(variable.axes)) if i not in group]
        return ("layers", *axes) if self.stacked else tuple(axes)

    def __getitem__(self, index: Any) -> Array:
        rows = [_joined([x[...][at] for x, at in parts]) for parts in self.blocks]
        return (jnp.stack(rows) if self.stacked else rows[0])[index]

    def set_value(self, value: Any) -> None:
        """Write a value of the published shape to the variables."""
        for parts, block in zip(self.blocks, value if self.stacked else [value], strict=True):
            start = 0
            for variable, at in parts:
                array = variable[...]
                rows = block
                if len(parts) > 1:
                    end = start + array.shape[-2]
                    rows, start = block[..., start:end, :], end
                variable.set_value(put_like(array.at[at].set(rows), array))


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-2)


def published_parameters(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's variables by published path, whatever its form."""
    parts: dict[str, dict[int, list[Part]]] = {}
    for path, variable in variables.items():
        match = _BLOCK_PATH.fullmatch(path)
        prefix, block, rest = (
            (f"{match[1]}*.", int(match[2]), match[3]) if match else ("", -1, path)
        )
        for name, at in _published_names(rest):
            parts.setdefault(prefix + name, {}).setdefault(block, []).append((variable, at))
    return {path: _published(blocks) for path, blocks in parts.items()}


def _published(blocks: dict[int, list[Part]]) -> Any:
    if list(blocks) == [-1] and len(blocks[-1]) == 1:
        return blocks[-1][0][0]
    return PublishedParameter([blocks[i] for i in sorted(blocks)], stacked=-1 not in blocks)


def _published_names(path: str) -> Iterator[tuple[str, Any]]:
    """Yield the published names of a variable, and the index of each in it."""
    *parents, name, field = ("", *path.split("."))
    prefix = ".".join((*parents, ""))[1:]
    if name in FUSED:
        for group, published in enumerate(FUSED[name]):
            yield f"{prefix}{published}.{field}", np.s_[..., group, :]
    else:
        yield f"{prefix}{name}.{PARTS.get(field, field)}".removeprefix("."), ...


def _copy(module: Any) -> Any:
    """Return a copy of the modules, which shares the arrays."""
    return jax.tree.map(lambda x: x, module)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _is_unstacked(x: Any) -> bool:
    return isinstance(x, UnstackedBlocks)


def _row(x: Any, i: int) -> Any:
    return x.list[i] if isinstance(x, UnstackedBlocks) else x[i]
