"""Which published tensors make up a parameter of ours.

The rule: a parameter's path is its published name, but for the last word where a `weight`
is transposed to a `kernel`, and for a star that stands for a block's number. What departs
from the rule, or is published and not needed, is listed here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ic_jax.config import FluxConfig
from ic_jax.weights.loading import abstract, parameters
from ic_jax.weights.tensors import Shape

# Starts of paths that are published as something else.
RENAMED: dict[str, dict[str, str]] = {
    "t5": {
        "encoder.relative_attention_bias.": (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias."
        )
    },
    "adapter": {
        "ip_adapter.transformer_blocks.": "ip_adapter.",
        "ip_adapter.single_transformer_blocks.": "ip_adapter.",  # numbered on
    },
}
# Published tensors that no module has and that the way back needs: kept in unused.safetensors.
UNUSED: dict[str, tuple[str, ...]] = {
    "siglip": ("vision_model.head.",),
    "dinov2": ("embeddings.mask_token",),
}
# Parts of larger checkpoints that are left behind, and what they are.
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
# What every name of a tower starts with; some versions of transformers leave it out.
PREFIX: dict[str, str] = {"siglip": "vision_model.", "clip": "text_model."}
# What the tower's names start with inside a checkpoint with a head on top.
WRAPPED: dict[str, str] = {"dinov2": "dinov2."}

# [out, in] -> [in, out]; [o, i, h, w] -> [h, w, i, o]; and back.
IN, BACK = {2: (1, 0), 4: (2, 3, 1, 0)}, {2: (1, 0), 4: (3, 2, 0, 1)}


@dataclass(frozen=True)
class Slot:
    """One parameter of ours and the published tensors that it is made of."""

    path: str
    shape: Shape
    names: tuple[str, ...]  # one per block, or one
    stacked: bool
    kernel: bool

    @property
    def published_shape(self) -> Shape:
        one = self.shape[1:] if self.stacked else self.shape
        return tuple(one[i] for i in BACK[len(one)]) if self.kernel else one

    def from_published(self, x: np.ndarray) -> np.ndarray:
        """One published tensor as it lies in the parameter (a view)."""
        return x.transpose(IN[x.ndim]) if self.kernel else x

    def to_published(self, x: np.ndarray, block: int) -> np.ndarray:
        """The published tensor of `block` in the parameter (a view)."""
        x = x[block] if self.stacked else x
        return x.transpose(BACK[x.ndim]) if self.kernel else x


def slots(component: str, config: Any, flux: FluxConfig | None = None) -> dict[str, Slot]:
    """A component's parameters by path."""
    found = {}
    for path, variable in parameters(abstract(component, config, flux)).items():
        kernel = path.endswith(".kernel")
        name = path.removesuffix("kernel") + "weight" if kernel else path
        for ours, published in RENAMED.get(component, {}).items():
            if name.startswith(ours):
                name = published + name.removeprefix(ours)
        first = flux.num_layers if flux and path.startswith("ip_adapter.single_") else 0
        stacked = "*" in name
        numbers = range(first, first + variable.shape[0]) if stacked else (0,)
        names = tuple(name.replace("*", str(n)) for n in numbers)
        found[path] = Slot(path, variable.shape, names, stacked, kernel)
    return found


def published_shapes(parts: dict[str, Slot]) -> dict[str, Shape]:
    """Every published name with its shape."""
    return {name: slot.published_shape for slot in parts.values() for name in slot.names}
