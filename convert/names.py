"""Correspondence of parameters and published tensors.

The rule: the path of a parameter is its published name, except that a transposed `weight` is
called `kernel` and that "*" takes the place of a block's number. This file lists the exceptions,
and the published tensors that no module needs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ic_jax.config import FluxConfig
from ic_jax.weights.loading import abstract, parameters
from ic_jax.weights.tensors import Shape

# Prefixes of parameter paths -> different prefixes of their published names.
RENAMED: dict[str, dict[str, str]] = {
    "t5": {
        "encoder.relative_attention_bias.": (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias."
        )
    },
    "adapter": {
        "ip_adapter.transformer_blocks.": "ip_adapter.",
        "ip_adapter.single_transformer_blocks.": "ip_adapter.",  # numbered after the double blocks
    },
}
# Published tensors without a module, kept in unused.safetensors for the way back.
UNUSED: dict[str, tuple[str, ...]] = {
    "siglip": ("vision_model.head.",),
    "dinov2": ("embeddings.mask_token",),
}
# Prefixes of tensors in larger checkpoints that are left out -> what these are.
IGNORED: dict[str, dict[str, str]] = {
    "siglip": {
        "text_model.": "the text tower",
        "logit_": "the contrastive loss's scale and bias",
        "vision_model.embeddings.position_ids": "a constant",
    },
    "dinov2": {"classifier.": "a classification head"},
    "t5": {"decoder.": "the decoder", "lm_head.": "the decoder's output"},
    "clip": {
        "vision_model.": "the vision tower",
        "visual_projection.": "the vision tower's projection",
        "text_projection.": "the contrastive projection",
        "logit_scale": "the contrastive loss's scale",
        "text_model.embeddings.position_ids": "a constant",
    },
}
# Prefix of every name of a tower; some versions of transformers omit it.
PREFIX: dict[str, str] = {"siglip": "vision_model.", "clip": "text_model."}
# Prefix of the tower's names in a checkpoint that adds a head.
WRAPPED: dict[str, str] = {"dinov2": "dinov2."}

# [out, in] -> [in, out]; [o, i, h, w] -> [h, w, i, o]; and back.
IN, BACK = {2: (1, 0), 4: (2, 3, 1, 0)}, {2: (1, 0), 4: (3, 2, 0, 1)}


@dataclass(frozen=True)
class Slot:
    """A parameter, and the published tensors that it is made of."""

    path: str
    shape: Shape
    names: tuple[str, ...]  # one per block, or a single one
    stacked: bool
    kernel: bool

    @property
    def published_shape(self) -> Shape:
        """Shape of each published tensor."""
        block = self.shape[1:] if self.stacked else self.shape
        return tuple(block[i] for i in BACK[len(block)]) if self.kernel else block

    def from_published(self, x: np.ndarray) -> np.ndarray:
        """Return a published tensor in the layout of the parameter, as a view."""
        return x.transpose(IN[x.ndim]) if self.kernel else x

    def to_published(self, x: np.ndarray, block: int) -> np.ndarray:
        """Return the published tensor of `block`, as a view of the parameter."""
        x = x[block] if self.stacked else x
        return x.transpose(BACK[x.ndim]) if self.kernel else x


def slots(component: str, config: Any, flux: FluxConfig | None = None) -> dict[str, Slot]:
    """Return the parameters of a component by path."""
    slots_by_path = {}
    for path, variable in parameters(abstract(component, config, flux)).items():
        kernel = path.endswith(".kernel")
        name = path.removesuffix("kernel") + "weight" if kernel else path
        for prefix, published in RENAMED.get(component, {}).items():
            if name.startswith(prefix):
                name = published + name.removeprefix(prefix)
        first = flux.num_layers if flux and path.startswith("ip_adapter.single_") else 0
        stacked = "*" in name
        numbers = range(first, first + variable.shape[0]) if stacked else (0,)
        names = tuple(name.replace("*", str(n)) for n in numbers)
        slots_by_path[path] = Slot(path, variable.shape, names, stacked, kernel)
    return slots_by_path


def published_shapes(parts: dict[str, Slot]) -> dict[str, Shape]:
    """Return the shape of every published tensor by name."""
    return {name: slot.published_shape for slot in parts.values() for name in slot.names}
