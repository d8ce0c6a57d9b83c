"""Methods of a pipeline that load, weigh, merge and remove style LoRAs, named as diffusers' are."""

from collections.abc import Sequence
from pathlib import Path

from ic_jax.runner import Runner
from ic_jax.weights.lora.delta import LoraFile
from ic_jax.weights.lora.lora_set import LoraSet
from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.lora.source import find_lora


class LoraMethods:
    """Base class of a pipeline for its methods that handle LoRAs."""

    _loras: LoraSet
    _runner: Runner

    def load_lora_weights(
        self,
        path: LoraFile | Path | str,
        adapter_name: str | None = None,
        *,
        weight: float = 1.0,
        trigger: str | None = None,
    ) -> None:
        """Load a style LoRA of any layout that docs/loras.md lists, and activate it.

        LoRAs that are active already stay so, and all add up; the weights of the base are not
        written. Prompts that are encoded from then on begin with the trigger words of the active
        LoRAs.

        Args:
            path: a safetensors file; a folder or a Hub repository, org/name or org/name@revision,
                with one such file; one of these ids with /FILE; or what `read_lora` returned, which
                has its weight and trigger.
            adapter_name: name for the methods below; "default_0", "default_1", ... by default.
            weight: strength; may be negative.
            trigger: words that the LoRA was trained to answer to.

        Raises:
            WeightsError: not such a LoRA, or one for another model; nothing changed.
            FileNotFoundError: no such file, folder or Hub repository, or no LoRA file in it.
            ValueError: the name is taken, or a folder has several files.
        """
        if not isinstance(path, LoraFile):
            targets = self._loras.targets
            path = read_lora(find_lora(path), weight, trigger, targets=targets)
        self._loras.add(path, adapter_name)

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float] | None = None,
    ) -> None:
        """Activate these loaded LoRAs, at these weights, and no others.

        The result depends on the base and the active LoRAs alone, not on what was active before.
        Other weights compile nothing anew.

        Args:
            adapter_names: a name, or a list, which may be empty.
            adapter_weights: a weight for all, or a list with one for each; by default the
                weights that the LoRAs were loaded with.

        Raises:
            ValueError: an unknown name, a wrong number of weights, or a weight that is not finite.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if adapter_weights is None:
            loras = self._loras.loras
            weights = [loras[name].weight if name in loras else 1.0 for name in names]
        elif isinstance(adapter_weights, Sequence):
            weights = list(adapter_weights)
        else:
            weights = [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"{len(weights)} weights for {len(names)} LoRAs; give one for each")
        self._loras.activate(dict(zip(names, weights, strict=True)))

    def get_active_adapters(self) -> list[str]:
        """Return the names of the active LoRAs."""
        return list(self._loras.active)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of all loaded LoRAs by component: "transformer", "text_encoder", ..."""
        published = {"clip": "text_encoder", "t5": "text_encoder_2"}
        names: dict[str, list[str]] = {}
        for name, lora in self._loras.loras.items():
            for component in sorted({component for component, _ in lora.changes}):
                names.setdefault(published.get(component, component), []).append(name)
        return names

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove loaded LoRAs by name; ValueError for an unknown name."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        self._loras.delete(names)

    def fuse_lora(self) -> None:
        """Merge the active LoRAs into the transformer's weights: no products at every step.

        Sums are rounded to the model's dtype. The next change of LoRAs, and `unfuse_lora`, put the
        base back bit for bit, from a copy in host memory.

        Raises:
            ValueError: no LoRA is active, or the model is sharded over several processes.
        """
        self._runner.refuse_several_processes("merging LoRAs")
        if not self._loras.active:
            raise ValueError("no LoRA is active; load one first")
        self._loras.merge()

    def unfuse_lora(self) -> None:
        """Restore the weights of the base; the LoRAs stay active, beside them."""
        self._loras.unmerge()

    def unload_lora_weights(self) -> None:
        """Remove every LoRA; pictures are bit for bit what they were without."""
        self._loras.clear()
