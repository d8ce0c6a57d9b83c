"""Large encoders of a model: kept in memory, or loaded only to encode.

T5, SigLIP and DINOv2 are 12.6 of the 42 GB of the published model, and the denoising steps do not
use them. CLIP's text encoder is small and LoRAs change it, so it always stays in memory.
"""

from collections.abc import Callable
from typing import Any

import jax

from ic_jax.weights.loading import Model

LARGE_ENCODERS = ("t5", "siglip", "dinov2")


class Encoders:
    """Encoders that stay in memory."""

    def __init__(self, model: Model):
        self._loaded = {component: getattr(model, component) for component in LARGE_ENCODERS}

    def get(self, *components: str) -> list[Any]:
        """Return the modules of these components; None for one that the model lacks."""
        return [self._loaded.get(component) for component in components]

    def in_memory(self) -> dict[str, Any]:
        """Return the modules that are in memory now, by component."""
        return {name: module for name, module in self._loaded.items() if module is not None}

    def when_loaded(self, then: Callable[[str, Any], None]) -> None:
        """Call `then` with each component and module that is loaded from now on."""

    def put_away(self) -> None:
        """Free what can be freed; called before the denoising steps."""


class EncodersOnDemand(Encoders):
    """Encoders that are loaded when requested, and deleted before others and before the steps."""

    def __init__(self, load: Callable[[str], Any]):
        """Keep `load`: component name -> module, or None if the model lacks the component."""
        self._load, self._loaded = load, {}
        self._then: Callable[[str, Any], None] | None = None

    def when_loaded(self, then: Callable[[str, Any], None]) -> None:
        self._then = then

    def get(self, *components: str) -> list[Any]:
        self._delete(set(self._loaded) - set(components))
        for component in components:
            if component not in self._loaded:
                module = self._loaded[component] = self._load(component)
                if module is not None and self._then is not None:
                    self._then(component, module)
        return super().get(*components)

    def put_away(self) -> None:
        self._delete(set(self._loaded))

    def _delete(self, components: set[str]) -> None:
        for component in components:
            # Not left to the garbage collector: the steps need the memory now.
            for array in jax.tree.leaves(self._loaded.pop(component)):
                array.delete()
