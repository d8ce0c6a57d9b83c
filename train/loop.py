"""Training loop: runs the stages of a recipe in order, resuming at the newest checkpoint."""

import warnings
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from ic_jax import multihost
from ic_jax.sharding import shardings
from train.checkpoints import Checkpoints
from train.data.loader import SkipCounter
from train.effect import effect_meter
from train.nonfinite import NonfiniteStop
from train.optimizer import estimates, evaluated, optimizer
from train.preview import Preview
from train.progress import Progress
from train.recipe import Recipe
from train.recipe_warnings import recipe_warnings
from train.report import StepLog, open_report
from train.run_folder import StopAgreement, Stopped, StopRequest, owned
from train.schedule import learning_rate
from train.setup import Setup, setup
from train.speaker import Speaker
from train.start_block import changes_since_start, start_block
from train.step import TrainState, train_step
from train.step_inputs import StepInputs
from train.step_settings import static_arguments


def train(recipe: Recipe, *, restart: bool = False) -> None:
    """Run all stages, resuming at the newest checkpoint.

    Args:
        restart: begin again where every checkpoint is damaged.

    Raises:
        CheckpointError: every checkpoint is damaged, or with `restart` one is whole.
        Stopped: on SIGTERM or SIGINT, after saving.
        FloatingPointError: too many steps in a row were not finite.
    """
    with ExitStack() as stack:
        # Open the data and the model, and lay the model out over the mesh.
        stack.enter_context(owned(recipe.out))
        request, speaker = stack.enter_context(StopRequest()), Speaker(recipe.out)
        with speaker.silence("loading the data and the model"):
            run = setup(recipe)
            inputs, preview = StepInputs(run), Preview(run)
        stop = StopAgreement(request, run.models.mesh)

        # Restore the newest checkpoint, or start.
        checkpoints = stack.enter_context(
            closing(Checkpoints(recipe.out, recipe.saving, restart=restart))
        )
        state, step, skips = _restore(run, checkpoints)
        checkpoints.check_room(state)
        _introduce(run, state, step, speaker)
        report = stack.enter_context(closing(open_report(recipe, step)))
        program = _step_program(run, state)
        stack.enter_context(jax.set_mesh(run.models.mesh))
        work = {name: inputs.step_flops(stage) for name, stage in recipe.stages.items()}
        progress, seen = Progress(recipe, speaker, work), set[Any]()
        nonfinite = NonfiniteStop(recipe.stop_after_bad, run.dataset)

        for name, stage in recipe.stages.items():
            first = recipe.first_steps()[name]
            end = first + stage.steps
            if step >= end:
                continue
            static = static_arguments(stage, recipe.optimizer, recipe.dtype)
            meter = effect_meter(run, name, inputs)
            rows = inputs.local_rows(stage.batch)
            batches = run.training_batches(name, step - first, rows, skips)
            log = StepLog()

            for host_batch in progress.bar(batches, name, step - first):
                # Feed: the rows of this process become part of a global batch on the devices.
                at = step - first
                arguments = (stop.asked(), *inputs.arguments(name, at, host_batch))

                # Step: nothing else is transferred, and at most two steps are queued, so that a
                # signal need not wait for more. The first of its kind compiles.
                shapes = (stage.batch, host_batch.size, *static.values())
                compiling = shapes not in seen
                with (
                    speaker.silence(f"compiling {name}'s step") if compiling else nullcontext(),
                    jax.transfer_guard("disallow"),
                ):
                    state, metrics, stop_answer = program(state, *arguments, **static)
                step += 1
                seen.add(shapes)
                progress.begin(step)
                log.add(metrics, stage.batch, inputs.sample_flops(host_batch))
                nonfinite.add(step, metrics.nonfinite_steps, host_batch.record)

                # Log.
                due = partial(_is_due, step=step, last=step == end)
                if due(recipe.reporting.every):
                    values = log.summary()
                    values |= {"learning rate": learning_rate(stage, at)}
                    report.scalars(step, values | estimates(state.opt_state))
                    progress.report(step, values)

                # Measure the reference effect; draw the previews.
                if meter and due(recipe.reporting.effect_every):
                    with speaker.silence("measuring the reference effect", step=step):
                        effect = meter.measure(evaluated(state.opt_state, state.params))
                    report.scalars(step, effect)
                    progress.report(step, effect)
                if due(recipe.reporting.preview_every):
                    with speaker.silence("drawing previews", step=step):
                        report.picture(step, "preview", preview.write(state, step))

                # Save, and stop if any process was asked to.
                stopping = stop.wanted(stop_answer)
                if due(recipe.saving.every) or stopping:
                    metadata = run.metadata(step) | {"samples": asdict(skips)}
                    with speaker.silence("saving", step=step):
                        checkpoints.save(step, state, metadata)
                if stopping:
                    with speaker.silence("writing the last checkpoint"):
                        checkpoints.wait()
                    raise Stopped(f"stopped after step {step} of {recipe.total_steps}, as asked")
                if due(recipe.reporting.every):
                    log = StepLog()  # its clock leaves out the effect, previews and saving
        nonfinite.finish()
        with speaker.silence("writing the last checkpoint"):
            checkpoints.wait()
        progress.summarise()


def _introduce(run: Setup, state: TrainState, step: int, speaker: Speaker) -> None:
    """Print what the run is, and warn of settings that do nothing in it."""
    if not multihost.is_first():
        return
    changes = changes_since_start(run.recipe, step)
    speaker.say(start_block(run, state, step, changes))
    for line in recipe_warnings(run.recipe):
        warnings.warn(line, stacklevel=2)


def _is_due(every: int, *, step: int, last: bool) -> bool:
    """Return whether something is done after a step: at multiples of `every`, and at the last."""
    return bool(every) and (step % every == 0 or last)


def _restore(run: Setup, checkpoints: Checkpoints) -> tuple[TrainState, int, SkipCounter]:
    """Return (state, step, skipped samples) of the newest checkpoint, or those of a new run."""
    recipe, params = run.recipe, run.models.params
    rule = optimizer(recipe.optimizer, next(iter(recipe.stages.values())))
    start = partial(TrainState.start, optimizer=rule, ema=recipe.averages)
    shapes = jax.eval_shape(start, params)
    places = shardings(shapes, run.models.mesh)
    step = checkpoints.latest
    if step is None:
        begin = jax.jit(start, donate_argnums=0, out_shardings=places)
        return begin(params), 0, SkipCounter()
    jax.tree.map(lambda x: x.delete(), params)  # those of the checkpoint take their place
    abstract = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )
    state = checkpoints.restore(abstract, run.metadata(step))
    return state, step, SkipCounter(**checkpoints.run_metadata(step)["samples"])


def _step_program(run: Setup, state: TrainState) -> Any:
    """Return the jitted training step; stages of equal settings and shapes share its program.

    It takes which devices' processes were asked to stop as well, after the state, and returns
    whether any was.
    """

    def step(state: TrainState, asked: Int[Array, "d"], *inputs: Any, **static: Any) -> Any:
        return *train_step(state, *inputs, **static), asked.max()

    step.__name__ = train_step.__name__  # the program's
    replicated = NamedSharding(run.models.mesh, P())
    return jax.jit(
        step,
        static_argnames=("optimizer", "timesteps", "accumulate", "remat", "dtype"),
        donate_argnums=(0,),
        out_shardings=(shardings(state, run.models.mesh), None, replicated),
    )
