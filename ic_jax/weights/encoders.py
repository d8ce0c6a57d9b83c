"""The large encoders of a model: in memory for good, or only while something is encoded.

T5, SigLIP and DINOv2 are 12.6 of the 42 GB, and the steps of drawing do not use them. CLIP's text
encoder is small, and LoRAs change it: it stays.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

from ic_jax.weights.loading import Model

Keeping = Literal["keep", "free"]
LARGE_ENCODERS = ("t5", "siglip", "dinov2")


class Encoders:
    """Those of a model in memory, kept there."""

    def __init__(self, model: Model):
        self._held = {component: getattr(model, component) for component in LARGE_ENCODERS}

    def get(self, *components: str) -> list[Any]:
        """Modules; None for what the model does not have."""
        return [self._held.get(component) for component in components]

    def put_away(self) -> None:
        """Before the steps."""


class EncodersOnDemand(Encoders):
    """Read when they are asked for, and deleted when others are, or before the steps."""

    def __init__(self, load: Callable[[str], Any]):
        """`load` reads one component; None if the model does not have it."""
        self._load, self._held = load, {}

    def get(self, *components: str) -> list[Any]:
        self._delete(set(self._held) - set(components))
        for component in components:
            if component not in self._held:
                self._held[component] = self._load(component)
        return super().get(*components)

    def put_away(self) -> None:
        self._delete(set(self._held))

    def _delete(self, components: set[str]) -> None:
        for component in components:
            # Not left to the garbage collector: the steps want the memory now.
            for array in jax.tree.leaves(self._held.pop(component)):
                array.delete()
