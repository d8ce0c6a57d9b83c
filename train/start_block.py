"""Block of lines that a run prints at its start: what it trains, on what, and from where."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ic_jax import auto_mesh
from ic_jax.files import write_json
from ic_jax.sharding import describe
from ic_jax.untrusted_files import read_json
from train.data.characters import held_out
from train.encode import Frozen
from train.recipe import Recipe
from train.setup import Setup
from train.step import TrainState

NAMED = 8  # held-out characters that are named


def start_block(run: Setup, state: TrainState, step: int, changes: list[str]) -> str:
    """Return the block of a run that goes on after `step`.

    Args:
        changes: in which the recipe differs from the one that the run started with.
    """
    recipe = run.recipe
    resumed = f"resumed from step {step} of {recipe.total_steps}" if step else "a new run"
    rows = [
        ("model", f"{recipe.model}: {_parameters(run)}, {recipe.dtype}"),
        ("data", f"{recipe.data}: {len(run.dataset)} pictures of {len(run.held_out)} characters"),
        ("held out", _held_out(run)),
        *((name, _stage(run, name)) for name in recipe.stages),
        ("trains", _trains(state, recipe)),
        ("devices", _devices(run)),
        ("memory", _memory(run, state)),
        ("out", f"{recipe.out}: {resumed}"),
        *(("changed", change) for change in changes),
    ]
    return "\n".join(f"{name:<9} {text}" for name, text in rows)


def changes_since_start(recipe: Recipe, step: int) -> list[str]:
    """Return in which the recipe differs from the one that its run started with.

    That one is kept in RUN/first-recipe.json. Call it before RUN/recipe.json is written anew, which
    it takes for a run that was started before there was such a file.
    """
    now = json.loads(json.dumps(recipe.to_dict()))
    first, latest = recipe.out / "first-recipe.json", recipe.out / "recipe.json"
    before = _read(first) or _read(latest) if step else None
    if before is None or not first.exists() or not step:
        write_json(first, before or now)
    was, new = dict(_flat(before or now)), dict(_flat(now))
    keys = [key for key in {**was, **new} if was.get(key) != new.get(key)]
    return [f"{key} was {was.get(key)!r} at the start and is {new.get(key)!r}" for key in keys]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        values = read_json(file)
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _parameters(run: Setup) -> str:
    leaves = jax.tree.leaves(run.models.frozen.transformer)
    return f"a transformer of {_count(sum(x.size for x in leaves))} parameters"


def _held_out(run: Setup) -> str:
    recipe, count = run.recipe, int(run.held_out.sum())
    if not count:
        why = "a LoRA has no reference" if recipe.lora else "holdout is 0"
        return f"nobody: {why}; the reference effect is not measured"
    names = [run.dataset.characters[c] for c in np.flatnonzero(run.held_out)[:NAMED]]
    more = ", ..." if count > NAMED else ""
    text = f"{count} characters, to measure the reference effect: {', '.join(names)}{more}"
    if held_out(run.dataset, recipe.holdout).sum() < count:
        text += f"; the fewest that do, since holdout = {recipe.holdout:g} gives fewer"
    return text


def _stage(run: Setup, name: str) -> str:
    stage, plan = run.recipe.stages[name], run.stages[name].training
    samples, targets = stage.steps * stage.batch, len(plan.records)
    crowded = int((np.bincount(run.dataset.others[:, 0]) >= stage.subjects).sum())
    left_out = ""
    if crowded and not run.recipe.lora:
        left_out = f"; {crowded} that show more than {stage.subjects} characters are no targets"
    return (
        f"{stage.steps} steps of {stage.batch}: {samples} samples of {stage.resolution} px, "
        f"{samples / targets:.1f} times each of {targets} pictures{left_out}"
    )


def _trains(state: TrainState, recipe: Recipe) -> str:
    what = f"a LoRA of rank {recipe.lora.rank}" if recipe.lora else "the adapter"
    count = _count(sum(x.size for x in jax.tree.leaves(state.params)))
    return f"{what}: {count} parameters, {recipe.optimizer}"


def _devices(run: Setup) -> str:
    mesh = run.models.mesh
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind} of {jax.device_count()}, mesh {describe(mesh)}"


def _memory(run: Setup, state: TrainState) -> str:
    base = _bytes([getattr(run.models.model, name) for name in Frozen._fields])
    trained = _bytes(state) + _bytes(state.params)  # and a gradient
    room = auto_mesh.memory_of(run.models.mesh.devices.flat[0])
    of = "" if room is None else f" of {_size(room)}"
    return (
        f"{_size(base + trained)}{of} on each device: {_size(base)} of weights and "
        f"{_size(trained)} of training state and gradient; activations come on top"
    )


def _bytes(tree: Any) -> int:
    """Return the bytes of a tree's arrays on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _count(number: int) -> str:
    for unit, name in ((1e9, " billion"), (1e6, " million")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return str(number)
