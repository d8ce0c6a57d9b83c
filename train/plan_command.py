"""Work of `python -m train plan`: compile a training step at full size, report what it needs."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ic_jax import auto_mesh, flow
from ic_jax.config import ConfigError
from ic_jax.devices import platform
from ic_jax.models.adapter import Adapter
from ic_jax.models.unstacked import split_output
from ic_jax.planning.compile_plan import PlannedProgram, compile_report, sharded_shapes
from ic_jax.planning.report import show
from ic_jax.planning.topologies import over_whole_topology, topology_devices
from ic_jax.sharding import ShardingError, describe, make_mesh, shardings
from ic_jax.weights import loading
from ic_jax.weights.model_folder import ModelFolder
from train import flops, lora
from train.encode import Frozen
from train.models import adapter_config, components_of, no_adapter
from train.objective import Trainable
from train.optimizer import optimizer
from train.recipe import Recipe, Stage, changed, read_recipe, recipe_of
from train.step import TrainState, train_step
from train.step_settings import static_arguments
from train.step_shapes import layout, step_inputs

BASE, ENCODERS, PARAMS, EMA, MOMENTS, BATCH = tuple[Any, ...](
    ("base", "encoders", "params", "EMA", "moments", "batch")
)
PUBLISHED = Path("published")  # stands for the MODEL, DATA and RUN of a plan without a recipe
# Labels of the step's arguments, by which their bytes are reported.
LABELS = (
    TrainState(PARAMS, EMA, MOMENTS, BATCH, BATCH),
    Frozen(BASE, *[ENCODERS] * 5),
    *[BATCH] * 5,
)


def run(args: argparse.Namespace) -> None:
    """Print the reports, and write them as JSON if asked."""
    recipe = recipe_to_plan(args)
    show(step_reports(recipe, model_shapes(recipe), topology_devices(args.topology)), args.json)


def model_shapes(recipe: Recipe) -> dict[str, Any]:
    """Return the components of a recipe's MODEL, shapes in place of arrays.

    A model that is not on this machine has the published sizes.
    """
    dtype = jnp.dtype(recipe.dtype)
    if recipe.model.is_dir():
        return auto_mesh.shapes_of(recipe.model, dtype)
    if recipe.model != PUBLISHED:
        print(f"{recipe.model}: is not here; the published sizes are planned", file=sys.stderr)
    return auto_mesh.published(dtype)


def step_reports(
    recipe: Recipe, shapes: dict[str, Any], devices: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return the reports of the training steps of a recipe's stages, as JSON values.

    Stages that differ in numbers only, such as the learning rate, share a step, and its report.

    Args:
        recipe: the recipe; the MODEL that it names is not read.
        shapes: the model's components, shapes in place of arrays.
        devices: on which the steps are planned.

    Raises:
        ConfigError: the model lacks a component that the steps need.
        ShardingError: no mesh of the devices holds the state, or not the one that the recipe names.
    """
    mesh, replicate = _layout(recipe, shapes, devices)
    mesh = over_whole_topology(mesh, devices)
    steps: dict[tuple[Any, ...], str] = {}
    for name, stage in recipe.stages.items():
        steps.setdefault(_settings(stage), name)
    return [_report(recipe, name, shapes, mesh, replicate) for name in steps.values()]


# Settings that leave more memory, the least change first.
LEANER: tuple[dict[str, Any], ...] = (
    {"cache": "FOLDER"},
    {"optimizer": "adafactor"},
    {"cache": "FOLDER", "optimizer": "adafactor"},
)


def _layout(recipe: Recipe, shapes: dict[str, Any], devices: Sequence[Any]) -> tuple[Mesh, bool]:
    """Return `layout` of a recipe; its error also says with which settings there would be one."""

    def of(recipe: Recipe) -> tuple[Mesh, bool]:
        return layout(recipe, base_of(recipe, shapes), trained_of(recipe, shapes), devices)

    try:
        return of(recipe)
    except ShardingError as error:
        for changes in LEANER:
            with suppress(ShardingError):
                of(replace(recipe, **changes))
                settings = " ".join(f"--set {key}={value}" for key, value in changes.items())
                message = f"{error}; or take {settings}"
                break
        else:
            raise
        raise ShardingError(message) from None


def recipe_to_plan(args: argparse.Namespace) -> Recipe:
    """Return the recipe to plan: a file's, or one stage of the options."""
    model = args.model and str(ModelFolder.open(args.model).path)
    options = {
        "stage1": {"batch": args.batch, "accumulate": args.accumulate, "remat": args.remat}
        | {"resolution": args.resolution},
        "": {"model": model, "mesh": args.mesh, "base": args.base}
        | {"text_length": args.text_length},
    }
    changes = {
        f"{table}.{key}".lstrip("."): value
        for table, values in options.items()
        for key, value in values.items()
        if value is not None
    }
    if args.recipe is None:
        values = dict.fromkeys(("model", "data", "out"), str(PUBLISHED)) | {"stage1": {"steps": 1}}
        return recipe_of(
            changed(values, [f"{k}={json.dumps(v)}" for k, v in changes.items()] + args.set)
        )
    if changes:
        key, value = next(iter(changes.items()))
        raise ConfigError(f"{args.recipe} is planned as it is; write --set {key}={value} instead")
    return read_recipe(args.recipe, args.set)


def base_of(recipe: Recipe, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the components that a recipe's steps compute with, besides what is trained."""
    used = [name for name in Frozen._fields if name in components_of(recipe, previews=False)]
    if lacks := [name for name in used if name not in shapes]:
        raise ConfigError(f"{recipe.model}: training needs {', '.join(lacks)}; convert it again")
    return {name: shapes[name] for name in used}


def trained_of(recipe: Recipe, shapes: Mapping[str, Any]) -> Trainable:
    """Return the trainable parameters as shapes: a LoRA, a new adapter or the model's."""
    flux = shapes["transformer"]
    if settings := recipe.lora:
        return jax.eval_shape(lambda: lora.initial(flux, settings, recipe.seed))
    if recipe.adapter:
        return loading.abstract("adapter", adapter_config(recipe), flux.config)
    if "adapter" not in shapes:
        raise no_adapter(recipe.model)
    return shapes["adapter"]


def _settings(stage: Stage) -> tuple[Any, ...]:
    """Return what the memory and work of a stage's step depend on."""
    return (stage.batch, stage.resolution, stage.accumulate, stage.remat, stage.focus > 0)


def _report(
    recipe: Recipe, name: str, shapes: dict[str, Any], mesh: Mesh, replicate: bool
) -> dict[str, Any]:
    stage = recipe.stages[name]
    report = compile_report(program(recipe, name, shapes, mesh, replicate=replicate))
    keys = ("batch", "resolution", "accumulate", "remat", "subjects")
    values = report.to_dict() | {
        "base": "replicated" if replicate else "sharded",
        "model TFLOP per sample": round(_model_flops(recipe, stage, shapes) / 1e12, 1),
        "settings": {k: getattr(stage, k) for k in keys}
        | {"optimizer": recipe.optimizer}
        | {"average": recipe.averages, "cache": bool(recipe.cache)},
    }
    if values["fits"] is False:
        heads = shapes["transformer"].config.num_attention_heads
        values["suggestion"] = _suggestion(recipe, name, mesh, heads)
    return values


def program(
    recipe: Recipe, name: str, shapes: dict[str, Any], mesh: Mesh, *, replicate: bool
) -> PlannedProgram:
    """Return the training step of a stage; `replicate` stores the whole base on every device."""
    stage = recipe.stages[name]
    rule = optimizer(recipe.optimizer, stage)
    start = partial(TrainState.start, optimizer=rule, ema=recipe.averages)
    arrays = jax.eval_shape(start, trained_of(recipe, shapes))
    state = sharded_shapes(arrays, mesh)
    configs = {component: module.config for component, module in shapes.items()}
    parts: Any = dict.fromkeys(Frozen._fields) | base_of(recipe, shapes)
    parts["transformer"] = jax.eval_shape(split_output, parts["transformer"])
    frozen = sharded_shapes(Frozen(**parts), mesh, replicate=replicate)
    return PlannedProgram(
        name=f"training step, {name}",
        function=partial(train_step, **static_arguments(stage, recipe.optimizer, recipe.dtype)),
        arguments=(state, frozen, *step_inputs(recipe, stage, configs, mesh)),
        labels=LABELS,
        mesh=mesh,
        minutes=20 if platform(mesh.devices.flat[0]) == "tpu" else 4,
        donate=(0,),
        out_shardings=(shardings(state, mesh), None),
    )


def _model_flops(recipe: Recipe, stage: Stage, shapes: dict[str, Any]) -> float:
    trained = trained_of(recipe, shapes)
    config = trained.config if isinstance(trained, Adapter) else None
    siglip, flux, vae = (shapes[name].config for name in ("siglip", "transformer", "vae"))
    tokens = (stage.resolution // (flow.PATCH * vae.downscale)) ** 2
    lengths = tokens, recipe.text_length
    return flops.training_sample(flux, *lengths, config, siglip, stage.subjects)


def _suggestion(recipe: Recipe, name: str, mesh: Mesh, heads: int) -> str:
    """Return what to try where a plan does not fit: first of all, smaller parts of the batch."""
    stage, sizes = recipe.stages[name], mesh.shape
    rows = stage.batch // stage.accumulate // (sizes["data"] * sizes["fsdp"])
    if rows > 1:
        return f"try --set {name}.accumulate={stage.accumulate * rows}"
    if stage.remat != "blocks":
        return f"try --set {name}.remat=blocks"
    if sizes["fsdp"] % 2 == 0 and heads % (2 * sizes["tensor"]) == 0:
        # Two devices share a row: half as many rows at a time.
        halved = {**sizes, "fsdp": sizes["fsdp"] // 2, "tensor": 2 * sizes["tensor"]}
        shared = describe(make_mesh(halved, list(mesh.devices.flat)))
        return f"try --set mesh={shared} --set {name}.accumulate={2 * stage.accumulate}"
    if not recipe.cache:
        return "try --set cache=FOLDER"
    if recipe.optimizer != "adafactor":
        return "try --set optimizer=adafactor"
    return f"try --set {name}.ema=0" if recipe.averages else "take more devices"
