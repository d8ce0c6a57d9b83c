"""Work of `python -m train plan`: compile a training step at full size, report what it needs."""

import argparse
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ic_jax import auto_mesh
from ic_jax.config import ConfigError
from ic_jax.models.adapter import Adapter
from ic_jax.models.flux import Flux
from ic_jax.planning import compile_plan
from ic_jax.sharding import describe, make_mesh
from ic_jax.weights import loading
from train import flops, lora
from train.encode import Frozen
from train.models import adapter_config, components_of
from train.objective import Trainable
from train.optimizer import optimizer
from train.recipe import Recipe, Stage, changed, read_recipe, recipe_of
from train.step import TrainState, train_step
from train.step_settings import static_arguments
from train.step_shapes import layout, step_inputs

BASE, ENCODERS, PARAMS, EMA, MOMENTS, BATCH = tuple[Any, ...](
    ("base", "encoders", "params", "EMA", "moments", "batch")
)
# Labels of the step's arguments, by which their bytes are reported.
LABELS = (
    TrainState(PARAMS, EMA, MOMENTS, BATCH, BATCH),
    Frozen(BASE, *[ENCODERS] * 5),
    *[BATCH] * 5,
)


def step_reports(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the reports of the training steps of a recipe's stages, as JSON values.

    The models have their published sizes, whatever MODEL the recipe names. Stages that differ in
    numbers only, such as the learning rate, share a step, and its report.
    """
    recipe = _recipe(args)
    devices = compile_plan.topology_devices(args.topology)
    base = auto_mesh.published(jnp.dtype(recipe.dtype))
    adapter = base.pop("adapter")
    base = {name: base[name] for name in components_of(recipe, previews=False) & base.keys()}
    trained = _trained(recipe, base["transformer"], adapter)
    mesh, replicate = layout(recipe, base, trained, devices)
    steps: dict[tuple[Any, ...], str] = {}
    for name, stage in recipe.stages.items():
        steps.setdefault(_settings(stage), name)
    return [_report(recipe, name, base, trained, mesh, replicate) for name in steps.values()]


def _recipe(args: argparse.Namespace) -> Recipe:
    """Return the recipe to plan: a file's, or one stage of the options."""
    options = {
        "stage1": {"batch": args.batch, "accumulate": args.accumulate, "remat": args.remat}
        | {"resolution": args.resolution},
        "": {"mesh": args.mesh, "base": args.base, "text_length": args.text_length},
    }
    changes = {
        f"{table}.{key}".lstrip("."): value
        for table, values in options.items()
        for key, value in values.items()
        if value is not None
    }
    if args.recipe is None:
        folders = dict.fromkeys(("model", "data", "out"), "published")
        values = {**folders, "adapter": "instantcharacter", "stage1": {"steps": 1}}
        return recipe_of(
            changed(values, [f"{k}={json.dumps(v)}" for k, v in changes.items()] + args.set)
        )
    if changes:
        key, value = next(iter(changes.items()))
        raise ConfigError(f"{args.recipe} is planned as it is; write --set {key}={value} instead")
    return read_recipe(args.recipe, args.set)


def _trained(recipe: Recipe, flux: Flux, adapter: Adapter) -> Trainable:
    """Return the trainable parameters as shapes: a LoRA, a new adapter or the published one."""
    if settings := recipe.lora:
        return jax.eval_shape(lambda: lora.initial(flux, settings, recipe.seed))
    if recipe.adapter:
        return loading.abstract("adapter", adapter_config(recipe), flux.config)
    return adapter


def _settings(stage: Stage) -> tuple[Any, ...]:
    """Return what the memory and work of a stage's step depend on."""
    return (stage.batch, stage.resolution, stage.accumulate, stage.remat, stage.focus > 0)


def _report(
    recipe: Recipe,
    name: str,
    base: dict[str, Any],
    trained: Trainable,
    mesh: Mesh,
    replicate: bool,
) -> dict[str, Any]:
    stage = recipe.stages[name]
    report = _compile_step(recipe, stage, base, trained, mesh, replicate)
    keys = ("batch", "resolution", "accumulate", "remat")
    values = report.to_dict() | {
        "program": f"training step, {name}",
        "base": "replicated" if replicate else "sharded",
        "model TFLOP per sample": round(_model_flops(recipe, stage, base, trained) / 1e12, 1),
        "settings": {k: getattr(stage, k) for k in keys}
        | {"optimizer": recipe.optimizer, "offload": recipe.offload}
        | {"average": recipe.averages, "cache": bool(recipe.cache)},
    }
    if values["fits"] is False:
        heads = base["transformer"].config.num_attention_heads
        values["suggestion"] = _suggestion(recipe, name, mesh, heads)
    return values


def _compile_step(
    recipe: Recipe,
    stage: Stage,
    base: dict[str, Any],
    trained: Trainable,
    mesh: Mesh,
    replicate: bool,
) -> compile_plan.CompileReport:
    rule = optimizer(recipe.optimizer, stage)
    start = partial(TrainState.start, optimizer=rule, ema=recipe.averages)
    shapes = jax.eval_shape(start, trained)
    places = shapes.shardings(mesh, offload=recipe.offload)
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )
    step = partial(train_step, **static_arguments(stage, recipe.optimizer, recipe.dtype))
    parts: Any = dict.fromkeys(Frozen._fields) | base
    frozen = compile_plan.sharded_shapes(Frozen(**parts), mesh, replicate=replicate)
    return compile_plan.compile_report(
        "training step",
        step,
        (state, frozen, *step_inputs(recipe, stage, auto_mesh.published_configs(), mesh)),
        LABELS,
        mesh,
        donate=(0,),
        out_shardings=(places, None),
    )


def _model_flops(recipe: Recipe, stage: Stage, base: dict[str, Any], trained: Trainable) -> float:
    siglip = base["siglip"].config if "siglip" in base else None
    config = trained.config if isinstance(trained, Adapter) else None
    tokens = (stage.resolution // 16) ** 2
    flux = base["transformer"].config
    return flops.training_sample(flux, tokens, recipe.text_length, config, siglip)


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
    return "take more devices" if recipe.offload else "try --set offload=true"
