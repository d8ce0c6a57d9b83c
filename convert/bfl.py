"""Black Forest Labs' single files (flux1-dev.safetensors, ae.safetensors) in diffusers' names.

A BFL tensor is one diffusers tensor, or several concatenated along their first axis.
Sources: black-forest-labs/flux, model.py and modules/autoencoder.py; diffusers,
scripts/convert_flux_to_diffusers.py.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ic_jax.weights.bfl_names import FLUX, HALVES_SWAPPED
from ic_jax.weights.tensors import Shape, Tensor, swap_halves

# Substitutions in a diffusers name, in order; BFL numbers the decoder's levels in reverse.
VAE: tuple[tuple[str, str], ...] = (
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.(down|up)_blocks\.(\d+)\.", r".\1.\2."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)
_POINTWISE = re.compile(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")


@dataclass(frozen=True)
class Fused:
    """A BFL tensor: the diffusers tensors `parts`, concatenated along their first axis."""

    shape: Shape
    parts: dict[str, Shape]
    swapped: bool

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the diffusers tensors of a BFL tensor, as views."""
        views, start = {}, 0
        if self.swapped:
            tensor = tensor.halves_swapped()
        for name, shape in self.parts.items():
            rows = tensor.rows(slice(start, start + shape[0]))
            views[name] = rows if rows.shape == shape else rows.view(shape, _reshape(shape))
            start += shape[0]
        return views

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the BFL tensor of diffusers tensors."""
        parts = [tensors[name] for name in self.parts]

        def array() -> np.ndarray:
            x = np.concatenate([part.array() for part in parts]) if parts[1:] else parts[0].array()
            return (swap_halves(x) if self.swapped else x).reshape(self.shape)

        return Tensor(parts[0].dtype, self.shape, array)


def _reshape(shape: Shape) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x.reshape(shape)


def layout(component: str, shapes: Mapping[str, Shape]) -> dict[str, Fused]:
    """Return BFL's tensors by name.

    Args:
        component: "transformer" or "vae".
        shapes: the diffusers tensors.
    """
    names = _flux_names(shapes) if component == "transformer" else _vae_names(shapes)
    tensors = {}
    for bfl, parts in names.items():
        first = shapes[parts[0]]
        shape = (sum(shapes[part][0] for part in parts), *first[1:])
        if component == "vae" and _POINTWISE.search(bfl):  # BFL has a 1x1 convolution
            shape = (*shape, 1, 1)
        swapped = bfl.rpartition(".")[0] == HALVES_SWAPPED
        tensors[bfl] = Fused(shape, {part: shapes[part] for part in parts}, swapped)
    return tensors


def _flux_names(names: Mapping[str, Shape]) -> dict[str, list[str]]:
    bfl_of = {part: bfl for bfl, parts in FLUX.items() for part in parts}
    order = [part for parts in FLUX.values() for part in parts]
    parts_of: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: order.index(_starred(name)[0])):
        module, number, last = _starred(name)
        bfl = bfl_of[module].replace("*", number)
        if bfl.endswith("_norm"):
            last = "scale"
        parts_of.setdefault(f"{bfl}.{last}", []).append(name)
    return parts_of


def _starred(name: str) -> tuple[str, str, str]:
    """Return the module with "*" for its block number, the number, and "weight" or "bias"."""
    module, _, last = name.rpartition(".")
    match = re.match(r"(?:single_)?transformer_blocks\.(\d+)\.", module)
    number = match[1] if match else ""
    return (re.sub(r"(?<=transformer_blocks\.)\d+", "*", module), number, last)


def _vae_names(names: Mapping[str, Shape]) -> dict[str, list[str]]:
    levels = 1 + max(int(n) for name in names for n in re.findall(r"up_blocks\.(\d+)\.", name))

    def counted_down(match: re.Match) -> str:
        return f"up_blocks.{levels - 1 - int(match[1])}."

    parts_of = {}
    for name in names:
        bfl = re.sub(r"up_blocks\.(\d+)\.", counted_down, name)
        for pattern, replacement in VAE:
            bfl = re.sub(pattern, replacement, bfl)
        parts_of[bfl] = [name]
    return parts_of
