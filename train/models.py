"""The models of a run: the frozen base, what is trained on it, and prompts as ids."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import auto_mesh
from ic_jax.config import (
    CONFIGS,
    AdapterConfig,
    ConfigError,
    FluxConfig,
    SchedulerConfig,
    VaeConfig,
)
from ic_jax.models.adapter import Adapter
from ic_jax.preprocessing.tokenizers import PromptTokenizer
from ic_jax.sharding import replicate_to_mesh, shardings
from ic_jax.weights import loading
from ic_jax.weights.model_folder import ModelFolder
from ic_jax.weights.tensors import WeightsError
from train import lora
from train.data.hashing import digest
from train.encode import Frozen, Ids
from train.objective import Trainable
from train.recipe import Recipe

TEXT = ("t5", "clip", "tokenizer", "tokenizer_2")
IMAGES = ("siglip", "dinov2")


@dataclass(frozen=True)
class Tokenizers:
    """Captions as both text encoders read them."""

    tokenizer: PromptTokenizer
    length: int  # T5 ids per prompt

    def ids(self, prompts: Sequence[str]) -> Ids:
        """Numpy arrays, a row for each."""
        ids: Any = self.tokenizer(list(prompts), max_sequence_length=self.length)
        return Ids(*ids)


@dataclass(frozen=True)
class Models:
    """`model` is the base as the pipeline takes it, without an adapter."""

    model: loading.Model
    frozen: Frozen
    trained: Trainable  # before training
    scheduler: SchedulerConfig
    vae: VaeConfig
    tokenizers: Tokenizers | None  # None: a cache has the text
    mesh: Mesh


def load_models(recipe: Recipe) -> Models:
    """Load what the recipe needs of the base in its dtype, and what is trained in float32.

    A LoRA needs no image encoders, a cached run neither the text encoders nor, without
    previews, the VAE.

    Raises:
        WeightsError: the MODEL folder is damaged, or lacks a component that training needs.
        ConfigError: neither the folder nor the recipe says what the adapter is, or a LoRA's
            target is no part of the model.
    """
    needed = {"transformer", *(() if recipe.lora else IMAGES)}
    encoders = set() if recipe.cache else {*TEXT, "vae"}
    shown = {"vae"} if recipe.reporting.preview_every else set()
    mesh, whole = mesh_for(recipe)
    model = load_parts(recipe, needed | encoders | shown, mesh, replicate=whole)
    run = needed | encoders
    parts: dict[str, Any] = {n: getattr(model, n) if n in run else None for n in Frozen._fields}
    frozen = Frozen(**parts)
    folder = ModelFolder.open(recipe.model)
    return Models(
        model=model,
        frozen=frozen,
        trained=_trained(recipe, frozen, folder, mesh),
        scheduler=model.scheduler or SchedulerConfig(),
        vae=loading.read_config(folder, "vae"),
        tokenizers=None if recipe.cache else tokenizers(recipe, model),
        mesh=mesh,
    )


def mesh_for(recipe: Recipe) -> tuple[Mesh, bool]:
    """The mesh of a run, and whether each of its devices keeps the whole base.

    Raises:
        ShardingError: there is no such mesh, or a batch does not divide over it.
    """
    rows = {name: stage.batch // stage.accumulate for name, stage in recipe.stages.items()}
    fresh: Any = () if recipe.lora else None
    if recipe.adapter:
        flux = loading.read_config(ModelFolder.open(recipe.model), "transformer")
        fresh = loading.abstract("adapter", adapter_config(recipe), flux)
    dtype = jnp.dtype(recipe.dtype)
    mesh, whole = auto_mesh.for_training(recipe.mesh, recipe.model, dtype, rows, fresh)
    return mesh, whole if recipe.base == "auto" else recipe.base == "replicated"


def load_parts(
    recipe: Recipe, needed: set[str], mesh: Mesh | None = None, *, replicate: bool = False
) -> loading.Model:
    """Components of the recipe's model, and its settings; WeightsError names what it lacks."""
    parts = {*needed, *loading.CONFIG_ONLY}
    dtype = jnp.dtype(recipe.dtype)
    model = loading.load_model(
        recipe.model, dtype, components=parts, mesh=mesh, replicate=replicate
    )
    lacks = sorted(name for name in needed if getattr(model, name) is None)
    if lacks:
        raise WeightsError(
            f"{recipe.model}: training needs {', '.join(lacks)}; convert a model that has it"
        )
    return model


def tokenizers(recipe: Recipe, model: loading.Model) -> Tokenizers:
    """Those of a model that has them."""
    assert model.tokenizer is not None
    assert model.tokenizer_2 is not None
    tokenizer = PromptTokenizer.from_folders(model.tokenizer, model.tokenizer_2)
    return Tokenizers(tokenizer, recipe.text_length)


def _trained(recipe: Recipe, frozen: Frozen, folder: ModelFolder, mesh: Mesh) -> Trainable:
    if recipe.lora:
        fresh = lora.fresh(frozen.transformer, recipe.lora, recipe.seed)
        return replicate_to_mesh(fresh, NamedSharding(mesh, P()))
    if recipe.adapter:
        return _fresh(recipe, frozen, mesh)
    if "adapter" not in folder.components:
        raise ConfigError(
            f"{recipe.model} has no adapter to go on with; give a table [adapter] with its sizes, "
            'or adapter = "instantcharacter" for the published ones; or train a LoRA, [lora]'
        )
    return loading.load_component(folder, "adapter", jnp.float32, mesh=mesh)


def base_digests(recipe: Recipe) -> dict[str, str]:
    """What tells a base from another: the checksum of each component's files."""
    components = ModelFolder.open(recipe.model).components
    return {
        kind: digest({name: entry.sha256 for name, entry in files.items()})
        for kind, files in components.items()
        if kind not in ("adapter", "sampling")
    }


def trainable_metadata(recipe: Recipe, trained: Trainable) -> dict[str, Any]:
    """What is trained, in JSON: what a checkpoint must say when it is read again."""
    return {
        "adapter": trained.config.to_dict() if isinstance(trained, Adapter) else None,
        "lora": asdict(recipe.lora) if recipe.lora else None,
    }


def _fresh(recipe: Recipe, frozen: Frozen, mesh: Mesh) -> Adapter:
    config = adapter_config(recipe)
    assert frozen.siglip is not None
    assert frozen.dinov2 is not None
    width = frozen.siglip.config.hidden_size + frozen.dinov2.config.hidden_size
    if config.inner_dim != width:
        raise ConfigError(
            f"adapter.inner_dim is {config.inner_dim}; it must be {width}, SigLIP's width plus "
            "DINOv2's"
        )
    given: dict[str, Any] = {
        "config": config,
        "flux": frozen.transformer.config,
        "seed": recipe.seed,
    }
    places = shardings(nnx.eval_shape(partial(_adapter, **given)), mesh)
    return jax.jit(_adapter, static_argnames=tuple(given), out_shardings=places)(**given)


def _adapter(config: AdapterConfig, flux: FluxConfig, seed: int) -> Adapter:
    return Adapter(config, flux, rngs=nnx.Rngs(seed))


def adapter_config(recipe: Recipe) -> AdapterConfig:
    """The sizes of a fresh adapter; ConfigError if the recipe's name or table is none."""
    if isinstance(recipe.adapter, str):
        config = CONFIGS.get(recipe.adapter)
        if not isinstance(config, AdapterConfig):
            raise ConfigError(f"adapter {recipe.adapter!r} is unknown; write 'instantcharacter'")
        return config
    return AdapterConfig.from_dict(dict(recipe.adapter))
