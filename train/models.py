"""The models of a run: the frozen base, the adapter to start from, and prompts as ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ic_jax import checkpoint
from ic_jax.config import CONFIGS, AdapterConfig, ConfigError, SchedulerConfig
from ic_jax.models.adapter import Adapter
from ic_jax.text import PromptTokenizer
from ic_jax.weights import WeightsError
from train.recipe import Recipe
from train.step import Empty, Frozen


@dataclass(frozen=True)
class Models:
    """`model` is the base as the pipeline takes it, without an adapter."""

    model: checkpoint.Model
    frozen: Frozen
    adapter: Adapter
    scheduler: SchedulerConfig
    tokenizer: PromptTokenizer
    text_length: int  # T5 ids per prompt

    def ids(self, captions: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """CLIP's and T5's ids."""
        prompts = captions if isinstance(captions, str) else list(captions)
        return self.tokenizer(prompts, max_sequence_length=self.text_length)

    @property
    def empty(self) -> Empty:
        clip_ids, t5_ids = self.ids("")
        return Empty(jnp.asarray(clip_ids[0]), jnp.asarray(t5_ids[0]))


def load_models(recipe: Recipe) -> Models:
    """Load the base in the recipe's dtype, and the adapter in float32.

    Raises:
        WeightsError: the MODEL folder is damaged, or lacks a component that training needs.
        ConfigError: neither the folder nor the recipe says what the adapter is.
    """
    model = checkpoint.load(recipe.model, jnp.dtype(recipe.dtype))
    parts = {name: getattr(model, name) for name in Frozen._fields}
    missing = [name for name, part in parts.items() if part is None]
    if missing or model.tokenizer is None or model.tokenizer_2 is None:
        lacks = ", ".join(missing or ["a tokenizer"])
        raise WeightsError(f"{recipe.model}: training needs {lacks}; convert a model that has it")
    frozen = Frozen(**parts)
    adapter = _fresh(recipe, frozen) if recipe.adapter else _given(recipe, model)
    model.adapter = None
    return Models(
        model=model,
        frozen=frozen,
        adapter=adapter,
        scheduler=model.scheduler or SchedulerConfig(),
        tokenizer=PromptTokenizer.from_folders(model.tokenizer, model.tokenizer_2),
        text_length=recipe.text_length,
    )


def _given(recipe: Recipe, model: checkpoint.Model) -> Adapter:
    if model.adapter is None:
        raise ConfigError(
            f"{recipe.model} has no adapter to go on with; give a table [adapter] with its sizes, "
            'or adapter = "instantcharacter" for the published ones'
        )
    # Again, in float32; its files were verified with the rest.
    return checkpoint.load_component(recipe.model, "adapter", jnp.float32, verify=False)


def _fresh(recipe: Recipe, frozen: Frozen) -> Adapter:
    config = adapter_config(recipe)
    width = frozen.siglip.config.hidden_size + frozen.dinov2.config.hidden_size
    if config.inner_dim != width:
        raise ConfigError(
            f"adapter.inner_dim is {config.inner_dim}; it must be {width}, SigLIP's width plus "
            "DINOv2's"
        )
    flux = frozen.transformer.config
    return jax.jit(lambda: Adapter(config, flux, rngs=nnx.Rngs(recipe.seed)))()


def adapter_config(recipe: Recipe) -> AdapterConfig:
    """The sizes of a fresh adapter; ConfigError if the recipe's name or table is none."""
    if isinstance(recipe.adapter, str):
        config = CONFIGS.get(recipe.adapter)
        if not isinstance(config, AdapterConfig):
            raise ConfigError(f"adapter {recipe.adapter!r} is unknown; write 'instantcharacter'")
        return config
    return AdapterConfig.from_dict(dict(recipe.adapter))
