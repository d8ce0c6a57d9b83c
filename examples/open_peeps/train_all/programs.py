"""Training steps of the stages, compiled in threads before their data is there."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from examples.open_peeps.base_model.fit import FitState, Interrupted, device_mesh, step_program
from examples.open_peeps.train_all.config import SmallModelConfig
from examples.open_peeps.train_all.rows import CROPS_BESIDE, OF_PERSON, shapes
from examples.open_peeps.train_all.tasks import Task, Tasks, latents
from ic_jax.cli import say
from ic_jax.compilation_cache import AHEAD


class Program(NamedTuple):
    """Compiled functions of a stage."""

    start: Callable[[], Any]  # initial parameters
    step: Callable[..., Any]


class Programs:
    """Programs of the stages, all of which are compiled at the same time."""

    def __init__(self, tasks: Tasks, stages: Sequence[str]):
        self._tasks = tasks
        self._futures: dict[tuple[str, ...], Future[Program]] = {}  # by what they train
        self._stages: list[str] = []  # the first of each program
        for name in stages:
            if tasks.by_stage[name].components not in self._futures:
                self._futures[tasks.by_stage[name].components] = Future()
                self._stages.append(name)
        _in_background(self._trace)

    def wait(self, stage: str, stop: Callable[[], bool]) -> Program:
        """Return the program of a stage once it is compiled, which is none of its seconds.

        Raises:
            Interrupted: `stop` asks for it while it waits.
        """
        future = self._futures[self._tasks.by_stage[stage].components]
        if not future.done():
            say(f"compiling {stage} ...")
        while not future.done():
            wait([future], timeout=1)
            if stop():
                raise Interrupted(f"the compiling of {stage}")
        return future.result()

    def _trace(self) -> None:
        """Trace one stage after the other, which takes Python, and compile all in threads."""
        mesh = device_mesh()
        for stage in self._stages:
            task = self._tasks.by_stage[stage]
            future = self._futures[task.components]
            try:
                step, arguments = planned_step(self._tasks, stage, mesh)
                lowered = jax.jit(task.start).lower(), step.lower(*arguments)
            except BaseException as error:  # the stage that waits for it raises it
                future.set_exception(error)
            else:
                _in_background(_compile, future, *lowered)


def _in_background(function: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, name=AHEAD, daemon=True).start()


def _compile(future: Future[Program], start: Any, step: Any) -> None:
    try:
        future.set_result(Program(start.compile(), step.compile()))
    except BaseException as error:
        future.set_exception(error)


def planned_step(tasks: Tasks, stage: str, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    """Return a stage's jitted step, and its arguments as shapes with shardings on a mesh."""
    task, config = tasks.by_stage[stage], tasks.config
    state = jax.eval_shape(lambda: FitState.start(task.start()))
    key = jax.eval_shape(lambda: jax.random.key(0))
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    replicated = NamedSharding(mesh, P())
    by_rows = NamedSharding(mesh, P("rows") if "rows" in mesh.axis_names else P())

    def placed(tree: Any, sharding: NamedSharding) -> Any:
        def place(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(place, tree)

    arguments = (
        placed(state, replicated),
        placed(_frozen(tasks, task), replicated),
        placed(batch_shapes(config, task, config.stages[stage].batch), by_rows),
        placed(key, replicated),
        placed(rate, replicated),
    )
    return step_program(task.loss, dtype=config.dtype), arguments


def batch_shapes(config: SmallModelConfig, task: Task, batch: int) -> dict[str, Any]:
    """Return the shapes of a batch of a task's fields."""
    rows = shapes(config)
    rows[CROPS_BESIDE] = rows["crops"]
    vae = tasks_vae(config)
    rows |= jax.eval_shape(
        lambda vae, x: {k: x[0] for k, x in latents(vae, x[None], "float32").items()},
        vae,
        rows["pixels"],
    )
    values = {}
    for name in task.fields:
        shape = rows[name].shape if name in (*OF_PERSON, CROPS_BESIDE) else rows[name].shape[1:]
        values[name] = jax.ShapeDtypeStruct((batch, *shape), rows[name].dtype)
    return values


def tasks_vae(config: SmallModelConfig) -> Any:
    """Return the shapes of an autoencoder."""
    return jax.eval_shape(Tasks(config, (4, 4), {"clip": None, "t5": None}).by_stage["vae"].start)


def _frozen(tasks: Tasks, task: Task) -> Any:
    """Return the shapes of what a task reads and does not train."""

    def frozen() -> Any:
        modules: dict[str, Any] = {}
        for name in ("dinov2", "siglip", "base"):
            other = tasks.by_stage[name]
            modules |= other.finish(other.start())
        return task.frozen(modules, 0.0)

    return jax.eval_shape(frozen)
