"""Models of a run: the frozen base, the trainable parameters and the tokenizers."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import auto_mesh, memory
from ic_jax.config import (
    CONFIGS,
    AdapterConfig,
    ConfigError,
    FluxConfig,
    SchedulerConfig,
    VaeConfig,
)
from ic_jax.models.adapter import Adapter
from ic_jax.models.unstacked import split_output
from ic_jax.preprocessing.tokenizers import PromptTokenizer
from ic_jax.sharding import make_mesh, parse, replicate_to_mesh, shardings
from ic_jax.weights import loading
from ic_jax.weights.fit import misfits
from ic_jax.weights.lora.delta import LoraFile
from ic_jax.weights.model_folder import ModelFolder
from ic_jax.weights.tensors import WeightsError
from train import lora
from train.activations import block_input_bytes
from train.data.hashing import digest
from train.encode import Frozen, Ids
from train.lora_start import continued, read_start
from train.objective import Trainable
from train.optimizer import state_copies
from train.optimizer_settings import LEANER
from train.recipe import Recipe

TEXT = ("t5", "clip", "tokenizer", "tokenizer_2")
IMAGES = ("siglip", "dinov2")


@dataclass(frozen=True)
class Tokenizers:
    """Tokenizers of both text encoders."""

    tokenizer: PromptTokenizer
    length: int  # T5 ids per prompt

    def ids(self, prompts: Sequence[str]) -> Ids:
        """Return the ids of prompts as NumPy arrays, a row for each."""
        ids: Any = self.tokenizer(list(prompts), max_sequence_length=self.length)
        return Ids(*ids)


@dataclass(frozen=True)
class Models:
    """Models of a run, laid out over its mesh."""

    model: loading.Model  # the base as the pipeline takes it, without an adapter
    frozen: Frozen  # the part of the base that the step needs
    params: Trainable  # before training, which takes their memory
    scheduler: SchedulerConfig
    vae: VaeConfig
    tokenizers: Tokenizers | None  # None: the text is cached
    mesh: Mesh

    @property
    def adapter(self) -> AdapterConfig | None:
        """Sizes of the adapter; None for a LoRA."""
        return self.params.config if isinstance(self.params, Adapter) else None


def load_models(recipe: Recipe, base: ModelFolder) -> Models:
    """Load the base in the recipe's dtype, and the trainable parameters in float32.

    Components that the run does not use are not loaded: the image encoders for a LoRA, the text
    encoders with a cache, and with a cache and no previews the VAE.

    Raises:
        WeightsError: the MODEL folder is damaged, or lacks a component that training needs.
        ConfigError: neither the folder nor the recipe has an adapter, or a LoRA's target is no
            part of the model, or its file to go on with does not fit the recipe.
        NotEnoughMemoryError: the base and the training state do not fit; nothing was read.
    """
    start = None
    if recipe.lora:
        start = read_start(recipe.lora, loading.read_config(base, "transformer"), recipe.out)
    mesh, replicate = mesh_for(recipe, base)
    activations, factors = _activations(recipe, base, mesh)
    memory.check_training(
        base,
        recipe.dtype,
        mesh,
        components_of(recipe),
        trained_shapes(recipe, base),
        replicate=replicate,
        copies=state_copies(recipe),
        leaner={
            f'optimizer = "{name}"': state_copies(replace(recipe, optimizer=name))
            for name in LEANER
        }
        | {"ema = 0 in every stage": state_copies(recipe) - recipe.averages},
        activations=activations,
        parts=factors,
    )
    model = load_parts(recipe, base, components_of(recipe), mesh, replicate=replicate)
    used = components_of(recipe, previews=False)
    parts: dict[str, Any] = {n: getattr(model, n) if n in used else None for n in Frozen._fields}
    frozen = Frozen(**parts)
    return Models(
        model=model,
        frozen=frozen,
        params=_initial_params(recipe, base, frozen, mesh, start),
        scheduler=model.scheduler or SchedulerConfig(),
        vae=loading.read_config(base, "vae"),
        tokenizers=None if recipe.cache else tokenizers(recipe, model),
        mesh=mesh,
    )


def _activations(recipe: Recipe, base: ModelFolder, mesh: Mesh) -> tuple[int, list[int]]:
    """Return the bytes that the largest step keeps, and factors that `accumulate` could take."""
    if not {"transformer", "vae"} <= set(base.components):
        return 0, []  # an error soon
    flux, vae = (loading.read_config(base, name) for name in ("transformer", "vae"))
    rows = {name: stage.batch // stage.accumulate for name, stage in recipe.stages.items()}
    kept = max(
        rows[name] * block_input_bytes(recipe, stage, flux, vae)
        for name, stage in recipe.stages.items()
    )
    common = math.gcd(*rows.values()) // (mesh.shape["data"] * mesh.shape["fsdp"])
    return kept, [n for n in range(2, common + 1) if common % n == 0]


def components_of(recipe: Recipe, *, previews: bool = True) -> set[str]:
    """Return the components of the base that a run loads: for its step, and for its previews."""
    images = () if recipe.lora else IMAGES
    encoders = () if recipe.cache else (*TEXT, "vae")
    previewed = ("vae",) if previews and recipe.reporting.preview_every else ()
    return {"transformer", *images, *encoders, *previewed}


def mesh_for(recipe: Recipe, base: ModelFolder) -> tuple[Mesh, bool]:
    """Return the mesh of a run, and whether the base is replicated on its devices.

    Raises:
        ShardingError: there is no such mesh, or a batch does not divide over it.
    """
    rows = {name: stage.batch // stage.accumulate for name, stage in recipe.stages.items()}
    dtype = jnp.dtype(recipe.dtype)
    mesh, replicate = auto_mesh.for_training(
        recipe.mesh,
        base,
        dtype,
        rows,
        trained_shapes(recipe, base),
        unused=loading.COMPONENTS.keys() - components_of(recipe),
        copies=state_copies(recipe),
    )
    return mesh, replicate if recipe.base == "auto" else recipe.base == "replicated"


def trained_shapes(recipe: Recipe, base: ModelFolder) -> Any:
    """Return the shapes of the adapter that is trained; of a LoRA none, since it is small."""
    if recipe.lora or ("adapter" not in base.components and not recipe.adapter):
        return ()
    config = adapter_config(recipe) if recipe.adapter else loading.read_config(base, "adapter")
    return loading.abstract("adapter", config, loading.read_config(base, "transformer"))


def load_parts(
    recipe: Recipe,
    base: ModelFolder,
    needed: set[str],
    mesh: Mesh | None = None,
    *,
    replicate: bool = False,
) -> loading.Model:
    """Load the needed components of the base and its settings, in the recipe's dtype.

    Raises:
        WeightsError: names the components that the base lacks.
    """
    components = {*needed, *loading.CONFIG_ONLY}
    dtype = jnp.dtype(recipe.dtype)
    model = loading.load_model(base, dtype, components=components, mesh=mesh, replicate=replicate)
    if model.transformer is not None:
        model.transformer = split_output(model.transformer)
    lacks = sorted(name for name in needed if getattr(model, name) is None)
    if lacks:
        raise WeightsError(
            f"{base.path}: training needs {', '.join(lacks)}; convert it again with all"
        )
    return model


def tokenizers(recipe: Recipe, model: loading.Model) -> Tokenizers:
    """Return the tokenizers of a model that was loaded with them."""
    assert model.tokenizer is not None
    assert model.tokenizer_2 is not None
    tokenizer = PromptTokenizer.from_folders(model.tokenizer, model.tokenizer_2)
    return Tokenizers(tokenizer, recipe.text_length)


def params_before(recipe: Recipe, base: ModelFolder) -> Trainable | None:
    """Return the trainable parameters from before training on one device, float32.

    None if they came from a LoRA file that is gone.
    """
    modules = auto_mesh.shapes_of(base, recipe.dtype)
    shapes: dict[str, Any] = {name: modules.get(name) for name in Frozen._fields}
    frozen = Frozen(**shapes)
    start = None
    if recipe.lora and recipe.lora.start:
        start = read_start(recipe.lora, modules["transformer"].config, recipe.out)
        if start is None:
            return None
    mesh = make_mesh(parse("data=1"), jax.devices()[:1])
    return _initial_params(recipe, base, frozen, mesh, start)


def _initial_params(
    recipe: Recipe, base: ModelFolder, frozen: Frozen, mesh: Mesh, start: LoraFile | None
) -> Trainable:
    """Return a new LoRA or `start`, a new adapter or the base's adapter, float32."""
    if recipe.lora:
        pairs = lora.initial(frozen.transformer, recipe.lora, recipe.seed)
        pairs = pairs if start is None else continued(pairs, start)
        return replicate_to_mesh(pairs, NamedSharding(mesh, P()))
    if recipe.adapter:
        return _initial_adapter(recipe, frozen, mesh)
    if "adapter" not in base.components:
        raise no_adapter(base.path)
    return loading.load_component(base, "adapter", jnp.float32, mesh=mesh)


def no_adapter(model: Path) -> ConfigError:
    """Return the error of a MODEL without an adapter, where the recipe has none either."""
    return ConfigError(
        f"{model} has no adapter to continue with; give a table [adapter] with its sizes, "
        'or adapter = "instantcharacter" for the published ones; or train a LoRA, [lora]'
    )


def base_digests(base: ModelFolder) -> dict[str, str]:
    """Return what identifies a base: one checksum for the files of each component."""
    return {
        component: digest({name: entry.sha256 for name, entry in files.items()})
        for component, files in base.components.items()
        if component not in ("adapter", "sampling")
    }


def trainable_metadata(recipe: Recipe, models: Models) -> dict[str, Any]:
    """Return the sizes of the trainable parameters, as JSON values."""
    return {
        "adapter": models.adapter.to_dict() if models.adapter else None,
        "lora": asdict(recipe.lora) if recipe.lora else None,
    }


def _initial_adapter(recipe: Recipe, frozen: Frozen, mesh: Mesh) -> Adapter:
    config = adapter_config(recipe)
    assert frozen.siglip is not None
    assert frozen.dinov2 is not None
    parts = {"siglip": frozen.siglip.config, "dinov2": frozen.dinov2.config, "adapter": config}
    for misfit in misfits(parts):
        raise ConfigError(f"[adapter]: {misfit}; correct inner_dim or the layers in the recipe")
    static: dict[str, Any] = {
        "config": config,
        "flux": frozen.transformer.config,
        "seed": recipe.seed,
    }
    places = shardings(nnx.eval_shape(partial(_adapter, **static)), mesh)
    return jax.jit(_adapter, static_argnames=tuple(static), out_shardings=places)(**static)


def _adapter(config: AdapterConfig, flux: FluxConfig, seed: int) -> Adapter:
    return Adapter(config, flux, rngs=nnx.Rngs(seed))


def adapter_config(recipe: Recipe) -> AdapterConfig:
    """Return the sizes of a new adapter; ConfigError if the recipe's name or table is wrong."""
    if isinstance(recipe.adapter, str):
        config = CONFIGS.get(recipe.adapter)
        if not isinstance(config, AdapterConfig):
            raise ConfigError(f"adapter {recipe.adapter!r} is unknown; write 'instantcharacter'")
        return config
    return AdapterConfig.from_dict(dict(recipe.adapter))
