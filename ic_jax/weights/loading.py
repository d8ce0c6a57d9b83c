"""Loading of a MODEL folder: its components as modules on the devices."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from ic_jax.config import (
    AdapterConfig,
    ClipConfig,
    ConfigError,
    Dinov2Config,
    FluxConfig,
    SamplingConfig,
    SchedulerConfig,
    SiglipConfig,
    T5Config,
    VaeConfig,
)
from ic_jax.models.adapter import Adapter
from ic_jax.models.clip import ClipText
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.flux import Flux
from ic_jax.models.layers import shapes_only
from ic_jax.models.siglip import SiglipVision
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.unstacked import published_parameters
from ic_jax.models.vae import Vae
from ic_jax.sharding import parameter_sharding, to_global_array
from ic_jax.untrusted_files import read_bytes
from ic_jax.weights.fit import ENCODERS, check_fit
from ic_jax.weights.model_folder import COMPONENT_NAMES, CONFIG, ModelFolder, ModelWriter
from ic_jax.weights.reading import Use
from ic_jax.weights.safetensors_io import Spec
from ic_jax.weights.tensors import Mismatch, Tensor, WeightsError

COMPONENTS: dict[str, tuple[Any, Any]] = {
    "transformer": (FluxConfig, Flux),
    "adapter": (AdapterConfig, Adapter),
    "siglip": (SiglipConfig, SiglipVision),
    "dinov2": (Dinov2Config, Dinov2),
    "t5": (T5Config, T5Encoder),
    "clip": (ClipConfig, ClipText),
    "vae": (VaeConfig, Vae),
}
CONFIG_ONLY: dict[str, Any] = {"scheduler": SchedulerConfig, "sampling": SamplingConfig}


def abstract(component: str, config: Any, flux: FluxConfig | None = None, dtype: Any = None) -> Any:
    """Return a component's module with shapes for arrays; the adapter also takes FLUX's config.

    Args:
        dtype: of the arrays; by default of each what it is made with, float32.
    """
    module = _abstract(component, config, flux if component == "adapter" else None)
    if dtype is None:
        return nnx.clone(module)
    return with_dtype(module, dtype)


def with_dtype(tree: Any, dtype: Any) -> Any:
    """Return the shapes of a tree's arrays, with one dtype for all."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


@cache  # a start needs the shapes several times
def _abstract(component: str, config: Any, flux: FluxConfig | None) -> Any:
    make = COMPONENTS[component][1]
    sizes = (config, flux) if component == "adapter" else (config,)
    with shapes_only():
        return nnx.eval_shape(lambda: make(*sizes, rngs=nnx.Rngs(0)))


def parameters(module: Any) -> dict[str, Any]:
    """Return the variables of a module by dotted path, as published; those of LoRAs are none."""
    state = nnx.to_flat_state(nnx.state(module))
    variables = {".".join(map(str, path)): x for path, x in state if "low_rank" not in path}
    return published_parameters(variables)


def config_class(component: str) -> Any:
    """Return the class of a component's config."""
    return CONFIG_ONLY.get(component) or COMPONENTS[component][0]


def read_config(folder: ModelFolder, component: str) -> Any:
    """Read a component's config; raise WeightsError if it is missing or invalid."""
    try:
        return config_class(component).from_dict(folder.json(component))
    except ConfigError as error:
        raise WeightsError(
            f"{folder.path / component / CONFIG}: {error}; convert the model again"
        ) from None


@dataclass(frozen=True)
class _Parameter:
    """Parameter to load: its place in a file and on the devices."""

    variable: Any
    file: str
    tensor: Tensor
    dtype: Any
    sharding: NamedSharding | None  # None: the default device

    def read(self) -> jax.Array:
        """Return the parameter's value, on its devices."""
        array = self.tensor.array()
        if self.sharding is not None:
            return to_global_array(array, self.sharding, self.dtype)
        return jax.device_put(array.astype(self.dtype, copy=False))


def load_component(
    folder: ModelFolder | str | Path,
    component: str,
    dtype: Any = None,
    *,
    verify: bool = True,
    mesh: Mesh | None = None,
    replicate: bool = False,
) -> Any:
    """Load one component, from the mapped files to the devices.

    Threads read the files and compare each with its checksum meanwhile. Together they hold, on the
    way to the devices, a quarter of the free memory in bytes of the files, or one larger tensor.

    Args:
        dtype: dtype of every parameter; None keeps those of the files.
        verify: compare the files' SHA-256; their sizes are always compared.
        mesh: devices to shard the parameters over, by the rules of `ic_jax.sharding`; each process
            keeps its own shards only. None takes the default device.
        replicate: see `sharding.shardings`.

    Raises:
        WeightsError: the component is missing, damaged, or does not match its config.
        ShardingError: a parameter cannot be sharded over the mesh; nothing is read.
    """
    options: dict[str, Any] = {"verify": verify, "mesh": mesh, "replicate": replicate}
    opened = ModelFolder.open(folder)
    if verify:
        opened.verify([component], parameters=False)
    return _load(opened, [component], dtype, **options)[component]


def _load(
    folder: ModelFolder,
    components: Sequence[str],
    dtype: Any,
    *,
    verify: bool,
    mesh: Mesh | None,
    replicate: bool,
) -> dict[str, Any]:
    """Return the modules of components, whose settings are verified already.

    Arguments and errors are those of `load_component`.
    """
    try:
        plans = {name: _plan(folder, name, dtype, mesh, replicate) for name in components}
    except WeightsError:
        if verify:
            folder.verify(components)  # a damaged header may look like another model's
        raise
    values: list[tuple[Any, jax.Array]] = []
    device = jax.config.jax_default_device  # type: ignore[attr-defined]  # of this thread only

    def load(parameter: _Parameter) -> None:
        with jax.default_device(device):
            values.append((parameter.variable, jax.block_until_ready(parameter.read())))

    uses: dict[str, dict[str, list[Use]]] = {}
    for component, (_, planned) in plans.items():
        files = uses[component] = {}
        for parameter in sorted(planned, key=lambda parameter: parameter.tensor.end):
            use = (parameter.tensor.end, partial(load, parameter))
            files.setdefault(parameter.file, []).append(use)
    folder.read_parameters(uses, verify=verify)
    for variable, value in values:
        variable.set_value(value)
    return {component: module for component, (module, _) in plans.items()}


def _plan(
    folder: ModelFolder, component: str, dtype: Any, mesh: Mesh | None, replicate: bool
) -> tuple[Any, list[_Parameter]]:
    """Return a component's module, shapes for arrays, and its parameters to load."""
    sizes = [component, "transformer"] if component == "adapter" else [component]
    module = abstract(component, *(read_config(folder, name) for name in sizes))
    variables, shards = parameters(module), folder.shards(component)
    tensors = {path: tensor for shard in shards.values() for path, tensor in shard.items()}
    if wrong := Mismatch.between({path: v.shape for path, v in variables.items()}, tensors):
        raise WeightsError(f"{folder.path / component}: {wrong}; convert the model again")

    def planned(file: str, path: str, tensor: Tensor) -> _Parameter:
        variable, sharding = variables[path], None
        if mesh is not None:
            name = f"{component}.{path}"
            sharding = parameter_sharding(name, variable, mesh, replicate=replicate)
        target = tensor.dtype if dtype is None else jnp.dtype(dtype)
        return _Parameter(variable, file, tensor, target, sharding)

    items = ((file, *item) for file, shard in shards.items() for item in shard.items())
    return module, [planned(*item) for item in items]


@dataclass
class Model:
    """Components of a MODEL folder: modules, configs and the folders of the tokenizers."""

    scheduler: SchedulerConfig | None = None
    sampling: SamplingConfig | None = None
    transformer: Flux | None = None
    adapter: Adapter | None = None
    siglip: SiglipVision | None = None
    dinov2: Dinov2 | None = None
    t5: T5Encoder | None = None
    clip: ClipText | None = None
    vae: Vae | None = None
    tokenizer: Path | None = None  # CLIP's
    tokenizer_2: Path | None = None  # T5's
    source: ModelFolder | None = None  # folder that the model was loaded from


def load_model(
    path: ModelFolder | str | Path,
    dtype: Any = None,
    *,
    components: Container[str] = COMPONENT_NAMES,
    verify: bool = True,
    mesh: Mesh | None = None,
    replicate: bool = False,
) -> Model:
    """Load a MODEL folder.

    Args:
        components: names of the components to load, if the folder has them; by default all.

    The other arguments and the errors are those of `load_component`.
    """
    folder = ModelFolder.open(path)
    if verify:
        folder.verify(parameters=False)
    check_folder(folder)
    wanted = [component for component in folder.components if component in components]
    modules = [component for component in wanted if component in COMPONENTS]
    parts = _load(folder, modules, dtype, verify=verify, mesh=mesh, replicate=replicate)
    return Model(source=folder, **parts, **_others(folder, components))


def configs(model: Model) -> dict[str, Any]:
    """Return the configs of a model's components, those that are loaded on demand among them."""
    on_disk = {} if model.source is None else folder_configs(model.source)
    modules = {component: getattr(model, component) for component in COMPONENTS}
    return on_disk | {name: module.config for name, module in modules.items() if module is not None}


def folder_configs(folder: ModelFolder) -> dict[str, Any]:
    """Return the configs of a folder's components that have parameters."""
    return {name: read_config(folder, name) for name in COMPONENTS if name in folder.components}


def check_folder(folder: ModelFolder) -> None:
    """Raise WeightsError if the parts of a folder do not fit each other, by their configs."""
    files = {name: folder.path / name / "tokenizer.json" for name in ENCODERS}
    tokenizers = {name: read_bytes(file) for name, file in files.items() if file.is_file()}
    try:
        check_fit(folder_configs(folder), tokenizers)
    except WeightsError as error:
        raise WeightsError(f"{folder.path}: {error}") from None


def model_shapes(path: ModelFolder | str | Path, dtype: Any) -> Model:
    """Return the model that `load_model` loads, shapes in place of arrays."""
    folder = ModelFolder.open(path)
    parts = _others(folder, folder.components)
    for component in COMPONENTS.keys() & folder.components.keys():
        parts[component], planned = _plan(folder, component, dtype, None, replicate=False)
        for parameter in planned:
            shape = jax.ShapeDtypeStruct(parameter.tensor.shape, parameter.dtype)
            parameter.variable.set_value(shape)
    return Model(source=folder, **parts)


def _others(folder: ModelFolder, components: Container[str]) -> dict[str, Any]:
    """Return configs and tokenizers' folders, what a Model has beside modules."""
    return {
        name: read_config(folder, name) if name in CONFIG_ONLY else folder.path / name
        for name in folder.components
        if name in components and name not in COMPONENTS
    }


def write_component(writer: ModelWriter, component: str, module: Any, dtype: Any = None) -> None:
    """Write a module as a component of a new MODEL folder, cast to `dtype` if one is given."""
    values = parameters(module)
    dtypes = {path: np.dtype(dtype or v.dtype) for path, v in values.items()}
    writer.add_config(component, module.config.to_dict())
    writer.add_tensors(
        component,
        {path: Spec(dtypes[path], v.shape) for path, v in values.items()},
        lambda path: [np.asarray(values[path][...].astype(dtypes[path]))],
    )


def write_model(writer: ModelWriter, model: Model, encoder: Callable[[str], Sequence[Any]]) -> None:
    """Write a model's components, with what their source folder has beside their parameters.

    Args:
        encoder: returns [module] of a component that is not in `model`, [None] if there is none.
    """
    for component in COMPONENTS:
        module = getattr(model, component) or encoder(component)[0]
        if module is not None:
            write_component(writer, component, module)
    for component in CONFIG_ONLY:
        writer.add_config(component, getattr(model, component).to_dict())
    if model.source is not None:
        for component in [*writer.components]:
            writer.add_extras(model.source, component)
    for component in ("tokenizer", "tokenizer_2"):
        if (folder := getattr(model, component)) is not None:
            for file in sorted(folder.iterdir()):
                writer.add_file(component, file.name, read_bytes(file))
