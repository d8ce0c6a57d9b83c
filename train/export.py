"""`python -m train export`: the trained adapter as a MODEL folder, or the LoRA as a file."""

import shutil
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ic_jax.config import AdapterConfig, ConfigError
from ic_jax.files import atomic_write
from ic_jax.models.adapter import Adapter
from ic_jax.untrusted_files import read_json
from ic_jax.weights import hub, loading, model_folder
from ic_jax.weights.lora.writing import Training, write_lora
from ic_jax.weights.model_folder import MODEL_CARD, ModelFolder, ModelWriter
from ic_jax.weights.safetensors_io import Spec
from train import averages, lora
from train.checkpoints import Checkpoints
from train.model_card import Trained
from train.models import params_before
from train.objective import Trainable
from train.optimizer import evaluated, optimizer
from train.recipe import Recipe, recipe_of
from train.step import TrainState


def export(
    run: Path,
    out: Path,
    dtype: str,
    *,
    step: int | None = None,
    ema: bool = True,
    cast_base: bool = False,
    overwrite: bool = False,
    push: str = "",
    public: bool = False,
) -> None:
    """Write a MODEL folder with the trained adapter and the run's base, or the trained LoRA.

    A model card says what was trained: README.md in the folder, or NAME.md beside a LoRA. The files
    of the base are linked where the file system allows it, copied otherwise.

    Args:
        dtype: of the trained weights, and of the base with `cast_base`.
        step: of the checkpoint; by default the newest.
        ema: export the average of the weights instead of the weights themselves.
        cast_base: write the base in `dtype` too.
        push: Hub id (org/name) to upload to; empty uploads nothing.
        public: whether a new repository is public.

    Raises:
        ConfigError: `run` is no RUN folder, or has no such checkpoint.
        FileExistsError: `out` is in the way.
        UploadError: the Hub refuses, or cannot be reached; `out` is written unless it refuses
            before.
    """
    recipe = recipe_in(run)
    base = ModelFolder.open(recipe.model)
    if push:
        hub.reserve(push, private=not public)
    step, state = read_state(run, recipe, base, step=step)
    params = chosen(state, ema=ema)
    weights = _weights_in_words(recipe, step, ema=ema)
    card = Trained(recipe, run, base, step, out, weights).card(push)
    if isinstance(params, Adapter):
        with model_folder.create(out, overwrite=overwrite) as writer:
            _write_model(writer, base, params, jnp.dtype(dtype), cast_base=cast_base)
            atomic_write(writer.folder / MODEL_CARD, card.encode())
    elif cast_base:
        raise ConfigError("--cast-base: this run trained a LoRA, which is exported without a base")
    else:
        beside = out.with_suffix(".md")
        if beside.exists() and not overwrite:
            raise FileExistsError(f"{beside}: exists; name another file or give --overwrite")
        training = Training(recipe.trigger, Path(recipe.model).name, step)
        options: dict[str, Any] = {"training": training, "overwrite": overwrite}
        write_lora(out, lora.published(params), jnp.dtype(dtype), **options)
        atomic_write(beside, card.encode())
    what = "the adapter" if isinstance(params, Adapter) else "the LoRA"
    trigger = f"; draw with --trigger {recipe.trigger!r}" if recipe.trigger else ""
    print(f"{out}: {what} after step {step} of {recipe.total_steps}{trigger}")
    if ema and state.ema_params is not None:
        before = params_before(replace(recipe, out=run), base)
        if before is not None:
            ways = averages.ways(before, state.ema_params, state.params)
            print(_average_in_words(recipe, step, ways))
    if push:
        try:
            print(f"{_upload(out, card, push, private=not public)}: uploaded")
        except hub.UploadError as error:
            message = f"{error}; {out} is written, and `hf upload {push} {out}` uploads it"
            raise hub.UploadError(message) from None


def _upload(out: Path, card: str, repo_id: str, *, private: bool) -> str:
    """Upload a MODEL folder, or a LoRA with its card; return the repository's address."""
    if out.is_dir():
        return hub.push(out, repo_id, private=private)
    with TemporaryDirectory() as parent:
        folder = Path(parent)
        shutil.copyfile(out, folder / out.name)
        (folder / MODEL_CARD).write_text(card, encoding="utf-8")
        return hub.push(folder, repo_id, private=private)


def _write_model(
    writer: ModelWriter, base: ModelFolder, adapter: Adapter, dtype: np.dtype, *, cast_base: bool
) -> None:
    """Write the components of the base, in `dtype` with `cast_base`, and the adapter in `dtype`."""
    for component in base.components:
        if cast_base and component in loading.COMPONENTS.keys() - {"adapter"}:
            _write_cast(writer, base, component, dtype)
        elif component != "adapter":
            writer.add_from(base, component)
    loading.write_component(writer, "adapter", adapter, dtype)


def _write_cast(writer: ModelWriter, base: ModelFolder, component: str, dtype: np.dtype) -> None:
    """Write a component of the base in another dtype, and its files for `convert to-torch`."""
    loading.write_component(writer, component, loading.load_component(base, component), dtype)
    if unused := base.unused(component):
        specs = {name: Spec(dtype, tensor.shape) for name, tensor in unused.items()}
        writer.add_tensors(
            component, specs, lambda name: [unused[name].array().astype(dtype)], unused=True
        )
    writer.add_extras(base, component)


def recipe_in(run: Path) -> Recipe:
    """Return the recipe of a RUN folder; ConfigError if `run` is not one."""
    try:
        return recipe_of(read_json(run / "recipe.json"))
    except FileNotFoundError:
        raise ConfigError(f"{run} is no run of `python -m train` (it has no recipe.json)") from None
    except ConfigError as error:
        raise ConfigError(f"{run / 'recipe.json'}: {error}") from None


def _average_in_words(recipe: Recipe, step: int, ways: averages.Ways) -> str:
    """Say what the average goes over and how far it went, and warn where it fell behind."""
    if ways.far:
        warnings.warn(
            f"the average is far from the last weights: it {ways}; they are {ways.apart:.4g} "
            "apart; train longer, or export the last ones, --no-ema",
            stacklevel=2,
        )
    return f"these are {_weights_in_words(recipe, step, ema=True)}, {ways} (--no-ema)"


def _weights_in_words(recipe: Recipe, step: int, *, ema: bool) -> str:
    if ema and recipe.optimizer == "schedule-free":
        return "Schedule-Free's average over all steps"
    if not ema or not recipe.averages:
        return "the last weights"
    return f"an average over {averages.effective_steps(recipe, step):.0f} steps"


def chosen(state: TrainState, *, ema: bool) -> Trainable:
    """Return the trained parameters of a state, or their average if it has one."""
    if not ema:
        return state.params
    if state.ema_params is not None:
        return state.ema_params
    return evaluated(state.opt_state, state.params)


def read_params(
    run: Path, recipe: Recipe, base: ModelFolder, *, step: int | None = None, ema: bool = True
) -> tuple[int, Trainable]:
    """Return step and trained parameters of a checkpoint, by default the newest.

    Args:
        ema: return the average of the parameters if the run has one.
    """
    step, state = read_state(run, recipe, base, step=step)
    return step, chosen(state, ema=ema)


def read_state(
    run: Path, recipe: Recipe, base: ModelFolder, *, step: int | None = None
) -> tuple[int, TrainState]:
    """Return step and training state of a checkpoint, by default the newest."""
    checkpoints = Checkpoints(run, recipe.saving, read_only=True)
    try:
        if checkpoints.latest is None:
            raise ConfigError(f"{run} has no checkpoint yet; train longer, or save more often")
        step = checkpoints.latest if step is None else step
        if step not in checkpoints.steps:
            steps = ", ".join(map(str, checkpoints.steps))
            raise ConfigError(f"--step {step}: {run} has checkpoints {steps}")
        first = next(iter(recipe.stages.values()))
        rule = optimizer(recipe.optimizer, first)
        start = partial(TrainState.start, optimizer=rule, ema=recipe.averages)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
            jax.eval_shape(start, _shapes(recipe, base, checkpoints.run_metadata(step))),
        )
        checkpoints.verify(step)
        state = checkpoints.restore(abstract, {}, step)
    finally:
        checkpoints.close()
    return step, state


def _shapes(recipe: Recipe, base: ModelFolder, metadata: dict[str, Any]) -> Trainable:
    """Return the trainable parameters as shapes."""
    flux = loading.read_config(base, "transformer")
    if settings := recipe.lora:
        module = loading.abstract("transformer", flux)
        return jax.eval_shape(lambda: lora.initial(module, settings, recipe.seed))
    config = AdapterConfig.from_dict(metadata["adapter"])
    return loading.abstract("adapter", config, flux)
