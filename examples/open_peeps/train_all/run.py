"""The run: draw, train every stage for its seconds, choose sampling settings, evaluate."""

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.open_peeps.base_model import fit_state
from examples.open_peeps.base_model.autoencoder import standardize
from examples.open_peeps.base_model.fit import FitOptions, fit_rows
from examples.open_peeps.base_model.training import write_model
from examples.open_peeps.base_model.word_tokenizer import Files, prompt_ids, tokenizers
from examples.open_peeps.train_all import judge
from examples.open_peeps.train_all.config import TRAINING, SmallModelConfig, Stage
from examples.open_peeps.train_all.drawing import Drawing
from examples.open_peeps.train_all.programs import Programs
from examples.open_peeps.train_all.rows import BatchRows
from examples.open_peeps.train_all.tasks import Modules, Tasks, encode_latents
from examples.open_peeps.train_all.work import Work
from examples.open_peeps.world import scene_captions
from ic_jax.cli import say
from ic_jax.files import locked

LATENTS_OF = 64  # people whose scenes say how latents are scaled


def train_all(
    out: Path, config: SmallModelConfig, minutes: float, stop: Callable[[], bool]
) -> None:
    """Make the small model `out` from nothing, or go on where an earlier call stopped.

    Raises:
        ConfigError: the work folder was begun with another configuration.
        FileExistsError: another process works there, or `out` exists and is another thing.
        Interrupted: `stop` asked for it; everything is saved.
    """
    folder = out.with_name(out.name + ".work")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"{folder}: another process is training there"):
        work = Work(folder, config)
        files, tasks = prepare(config)
        say(plan(config, minutes, work))
        modules = _train(work, tasks, files, minutes, stop)
        write = partial(write_model, files=files, dtype=jnp.bfloat16)
        judge.write_and_evaluate(out, work, modules, config, write, stop)
        shutil.rmtree(work.data, ignore_errors=True)


def prepare(config: SmallModelConfig) -> tuple[dict[str, Files], Tasks]:
    """Return the files of the tokenizers, and the tasks of the stages."""
    files, *vocabularies = tokenizers(scene_captions.vocabulary(), scenes=True)
    clip, t5 = prompt_ids(files, [""], config.text_length)
    empty = {"clip": clip[0].astype(np.int32), "t5": t5[0].astype(np.int32)}
    return files, Tasks(config, (vocabularies[0], vocabularies[1]), empty)


def plan(config: SmallModelConfig, minutes: float, work: Work) -> str:
    """Return what will be done, and what is done already, a line for each stage."""
    lines = [f"{minutes:g} minutes on {jax.devices()[0].device_kind}, {os.cpu_count()} cores"]
    for name, stage in config.stages.items():
        seconds = 60 * minutes * stage.share
        done = work.done.get(name)
        state = f"done: {done['steps']} steps, loss {done['loss'][-1]}" if done else ""
        if not done and work.state(name).exists():
            state = "begun"
        lines.append(f"  {name:10}{seconds:7.0f} s  batches of {stage.batch:4}  {state}")
    for name in judge.STEPS:
        lines.append(f"  {name:10}{'':33}{'done' if name in work.done else ''}".rstrip())
    return "\n".join(lines)


def _train(
    work: Work,
    tasks: Tasks,
    files: dict[str, Files],
    minutes: float,
    stop: Callable[[], bool],
) -> Modules:
    """Train the stages that are not done, and return all components."""
    config, modules = tasks.config, work.load(tasks)
    left = [name for name in config.stages if name not in work.done]
    if not left:
        return modules
    programs = Programs(tasks, left)
    workers = os.cpu_count() or 1
    drawing = Drawing(work.data, config, files, workers, stop, work.chunks)
    try:
        for name in left:
            _wait_for_data(drawing, work, name)
            program = programs.wait(name, stop)
            start = time.monotonic()
            stage, task = config.stages[name], tasks.by_stage[name]
            if "mean" in task.fields and "mean" not in drawing.rows.arrays:
                encode = partial(encode_latents, modules["vae"], dtype=config.dtype)
                drawing.rows.compute(encode, "pixels")
            collect = drawing.collect if name == "vae" else lambda: None
            rows = BatchRows(drawing.rows, task.fields, stage.scenes, collect)
            trained, curve = fit_rows(
                name,
                modules.get(task.components[0]) or program.start(),
                program.step,
                rows,
                _options(work, config, name, stage, minutes, stop),
                frozen=task.frozen(modules, stage.text_dropout),
            )
            modules |= task.finish(trained)
            steps = fit_state.read_losses(work.state(name))
            figures: dict[str, Any] = {"steps": len(steps), "loss": curve}
            if name == "vae":
                standardize(modules["vae"], _some_pictures(drawing))
                scale = modules["vae"].config
                figures |= {k: getattr(scale, k) for k in ("shift_factor", "scaling_factor")}
            figures["seconds"] = round(time.monotonic() - start, 1)
            work.finish(name, figures, {k: modules[k] for k in task.components})
            over = sum(config.stages[each].share for each in work.done if each in config.stages)
            say(
                f"{name}: {figures['seconds']} s, {len(steps)} steps, loss {curve[-1]}; "
                f"{100 * over / TRAINING:.0f}% of the training is done"
            )
    finally:
        drawing.close()
    return modules


def _wait_for_data(drawing: Drawing, work: Work, stage: str) -> None:
    """Wait for the data of a stage: some for the autoencoder, which is joined by more, or all."""
    if stage == "vae":
        drawing.wait(work.config.first_chunks)
    elif work.chunks:
        drawing.wait(work.chunks)
    else:
        drawing.wait(work.config.least_chunks)
        drawing.close()
        work.keep_chunks(drawing.chunks)


def _options(
    work: Work,
    config: SmallModelConfig,
    name: str,
    stage: Stage,
    minutes: float,
    stop: Callable[[], bool],
) -> FitOptions:
    seconds = 60 * minutes * stage.share
    return FitOptions(
        0,
        stage.batch,
        stage.rate,
        config.seed,
        work.state(name),
        seconds=seconds,
        dtype=config.dtype,
        stop=stop,
    )


def _some_pictures(drawing: Drawing) -> np.ndarray:
    pixels = np.asarray(drawing.rows.arrays["pixels"][: min(len(drawing.rows), LATENTS_OF)])
    return pixels.reshape(-1, *pixels.shape[2:])
