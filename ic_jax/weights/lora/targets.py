"""Linear maps of a model that a LoRA may change, and their sizes."""

from collections.abc import Mapping
from typing import Any

from ic_jax.weights.loading import abstract, parameters

# Component -> published name of a linear map -> numbers of its inputs and outputs.
Targets = Mapping[str, Mapping[str, tuple[int, int]]]
COMPONENTS = ("transformer", "clip", "t5")


def targets_of(configs: Mapping[str, Any]) -> Targets:
    """Return the linear maps of the components that LoRAs change, of a model with these configs."""
    return {name: _maps(name, configs[name]) for name in COMPONENTS if name in configs}


def misfit(targets: Targets, component: str, module: str, inputs: int, outputs: int) -> str | None:
    """Return what is wrong with a LoRA for a map of these sizes; None if it fits."""
    if component not in targets:
        return f"this model has no {component}; read the file with targets to pass its changes over"
    size = targets[component].get(module)
    if size is None:
        return f"this model's {component} has no {module}"
    if (inputs, outputs) == size:
        return None
    problem = f"{module} is for a map {inputs} -> {outputs}; this model's is {size[0]} -> {size[1]}"
    if module == "x_embedder":
        return f"{problem}: it was made for a FLUX whose input takes another picture too"
    return problem


def _maps(component: str, config: Any) -> dict[str, tuple[int, int]]:
    maps = {}
    for path, variable in parameters(abstract(component, config)).items():
        stacked = path.count("*")
        if not path.endswith(".kernel") or len(variable.shape) != 2 + stacked:
            continue  # a convolution
        name = path.removesuffix(".kernel")
        for number in range(variable.shape[0] if stacked else 1):
            maps[name.replace("*", str(number))] = variable.shape[-2:]
    return maps
