"""Trainer for modules and data that fit into memory: AdamW, cosine rate, averaged parameters.

A training lasts a number of steps, or of seconds, and its rate follows the share that is over.
Every local device computes a part of each batch. On a CPU, one device per core
(examples/open_peeps/NOTES.md) is faster than one device that splits each operation over the cores.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from examples.open_peeps.base_model import fit_state
from ic_jax.config import ConfigError

M = TypeVar("M")
SAVE_SECONDS = 20.0  # between two states; a training that is killed loses no more
LOST = 20  # steps in a row without a finite loss, after which a training ends
RISE = 0.1  # share of a training by seconds in which its rate has risen, however slow the steps
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), optax.add_decayed_weights(0.01)
)


@dataclass(frozen=True)
class FitOptions:
    """Length and rate of a training, and where its state is kept."""

    steps: int
    batch: int
    learning_rate: float
    seed: int
    checkpoint: Path  # folder, written on the way, and resumed from if it exists
    warmup: int = 100  # steps, of a training by steps; one by seconds may have fewer
    ema: float = 0.998  # decay of the averaged parameters
    seconds: float = 0.0  # of the training, in all processes together; 0 is `steps` instead
    dtype: str = "float32"  # of the computation; parameters and moments are float32
    stop: Callable[[], bool] = lambda: False  # asked after each step: save, and raise Interrupted


class Interrupted(Exception):
    """Raised on a request to stop, after saving; the command exits with code 75."""

    exit_code = 75

    def __init__(self, where: str):
        super().__init__(f"stopped in {where}; the same command continues from there")


class Rows(Protocol):
    """Rows that batches are sampled from; there may be more of them at every step."""

    def __len__(self) -> int: ...

    def take(self, indices: Int[np.ndarray, "b"]) -> Any:
        """Return rows as a tree of arrays with the batch as leading axis."""


class HostRows:
    """Rows of a tree of arrays in the memory of the host."""

    def __init__(self, data: Any):
        self._data = data

    def __len__(self) -> int:
        return len(jax.tree.leaves(self._data)[0])

    def take(self, indices: Int[np.ndarray, "b"]) -> Any:
        return jax.tree.map(lambda x: x[indices], self._data)


class FitState(NamedTuple):
    """Everything that a step changes."""

    module: Any
    ema: Any
    opt_state: Any
    steps: Float[Array, ""]

    @classmethod
    def start(cls, module: Any) -> "FitState":
        """Return the state before the first step."""
        ema = jax.tree.map(jnp.copy, module)
        return cls(module, ema, OPTIMIZER.init(module), jnp.zeros(()))


Loss = Callable[[Any, Any, Any, Array], Array]  # of (module, frozen, batch, random key)


def step_program(loss: Loss, ema: float = 0.998, dtype: str = "float32") -> Callable:
    """Return the training step: (state, frozen, batch, key, rate) to (state, loss).

    The float32 parameters are cast to `dtype` inside, so that their gradients are float32. A step
    whose gradient is not finite changes nothing.
    """

    def update(
        state: FitState, frozen: Any, batch: Any, key: Array, rate: Float[Array, ""]
    ) -> tuple[FitState, Array]:
        def cast_loss(module: Any) -> Array:
            cast = jax.tree.map(lambda x: x.astype(dtype), module)
            return loss(cast, frozen, batch, key)

        value, gradient = jax.value_and_grad(cast_loss)(state.module)
        updates, opt_state = OPTIMIZER.update(gradient, state.opt_state, state.module)
        module = jax.tree.map(lambda p, u: p - rate * u, state.module, updates)
        # Start with a plain mean: a fixed decay would remember the initial parameters too long.
        decay = jnp.minimum(ema, (1 + state.steps) / (10 + state.steps))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema, module)
        new = FitState(module, average, opt_state, state.steps + 1)
        finite = jnp.isfinite(optax.tree.norm(gradient))
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state), value

    return jax.jit(update, donate_argnums=0)


def fit(
    name: str,
    module: M,
    loss: Callable[[M, Any, Array], Array],
    data: Any,
    options: FitOptions,
) -> tuple[M, list[float]]:
    """Train a module on rows of arrays in memory.

    Args:
        name: label of the progress bar.
        module: initial parameters; their buffers are donated.
        loss: function of (module, batch, random key).
        data: an array, or a tree of arrays, from whose rows batches are sampled.

    Returns:
        The averaged parameters, and the loss in up to 40 equal intervals.

    Raises:
        ConfigError: the batch does not divide over the local devices.
    """
    step = step_program(lambda m, _, batch, key: loss(m, batch, key), options.ema, options.dtype)
    return fit_rows(name, module, step, HostRows(data), options)


def fit_rows(
    name: str,
    module: M,
    step: Callable,
    rows: Rows,
    options: FitOptions,
    frozen: Any = None,
) -> tuple[M, list[float]]:
    """Train a module by a step of `step_program`, or a compiled one; see `fit`.

    The state is saved on the way and at the end, and an interrupted call resumes from it. The
    caller removes the checkpoint once the module is stored.

    Raises:
        ConfigError: the batch does not divide over the local devices.
        FloatingPointError: the last `LOST` losses were not finite.
        Interrupted: `options.stop` asked for it; the state is saved.
    """
    begin = time.monotonic()
    devices = jax.local_devices()
    if options.batch % len(devices):
        raise ConfigError(
            f"a batch of {options.batch} rows does not divide over {len(devices)} devices; "
            "use a multiple of that, or fewer devices"
        )
    replicated, by_rows = device_shardings()
    state, losses, spent = fit_state.restore(options.checkpoint, FitState.start(module))
    state, frozen = jax.device_put((state, frozen), replicated)
    key, saved, queued = jax.random.key(options.seed), begin, deque[Array]()

    def elapsed() -> float:
        return spent + time.monotonic() - begin

    def save() -> None:
        losses.extend(float(x) for x in queued)
        queued.clear()
        fit_state.save(options.checkpoint, state, losses, elapsed())

    with _bar(name, options, len(losses)) as bar:
        while True:
            n = len(losses) + len(queued)
            share = _share(options, n, elapsed())
            if n and share >= 1:  # at least one step, however long its program took to compile
                break
            # NumPy's on purpose: a program of JAX's to sample would wait for the step before.
            indices = np.random.default_rng((options.seed, n)).integers(
                len(rows), size=options.batch
            )
            batch = jax.device_put(rows.take(indices), by_rows)
            rate = np.float32(learning_rate(options, n, share))
            state, value = step(state, frozen, batch, jax.random.fold_in(key, n), rate)
            queued.append(value)
            # At most two steps are queued, so that the clock and a request to stop are not late.
            if len(queued) > 2:
                losses.append(float(queued.popleft()))
                _check_finite(name, losses)
            _advance(bar, options, elapsed(), losses)
            stopping, now = options.stop(), time.monotonic()
            if stopping or now - saved >= SAVE_SECONDS:
                save()
                saved = time.monotonic()
            if stopping:
                raise Interrupted(name)
        save()
    known = [loss for loss in losses if math.isfinite(loss)] or losses
    intervals = np.array_split(known, min(40, len(known)))
    average = jax.tree.map(jnp.asarray, jax.device_get(state.ema))
    return average, [round(float(np.mean(interval)), 5) for interval in intervals]


def _check_finite(name: str, losses: Sequence[float]) -> None:
    """Raise FloatingPointError after `LOST` losses in a row that are not finite."""
    if len(losses) >= LOST and not np.isfinite(losses[-LOST:]).any():
        raise FloatingPointError(
            f"{name}: the last {LOST} losses are not finite, at step {len(losses)}; the state that "
            "was saved last is kept"
        )


def learning_rate(options: FitOptions, step: int, share: float) -> float:
    """Return the rate of a step: linear warm-up by steps, and a cosine by the share that is over.

    The warm-up has at most a quarter of a number of steps, or `RISE` of a number of seconds.
    """
    warmup = options.warmup if options.seconds else min(options.warmup, options.steps // 4)
    rise = (step + 1) / max(1, warmup)
    if options.seconds:
        rise = max(rise, share / RISE)
    return options.learning_rate * min(1.0, rise) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def _share(options: FitOptions, step: int, seconds: float) -> float:
    return seconds / options.seconds if options.seconds else step / options.steps


def _bar(name: str, options: FitOptions, steps: int) -> tqdm:
    if options.seconds:
        return tqdm(desc=name, unit="s", total=round(options.seconds), mininterval=5)
    return tqdm(desc=name, unit="step", initial=steps, total=options.steps, mininterval=5)


def _advance(bar: tqdm, options: FitOptions, seconds: float, losses: list[float]) -> None:
    """Move the progress bar by a step, or to the seconds that are over."""
    bar.update(min(round(seconds), bar.total) - bar.n if options.seconds else 1)
    if losses:
        values = {"loss": f"{np.mean(losses[-100:]):.4f}"}
        bar.set_postfix(values | ({"steps": len(losses)} if options.seconds else {}), refresh=False)


def dtype_of(module: Any) -> Any:
    """Return the dtype of a module's parameters."""
    return jax.tree.leaves(module)[0].dtype


def device_mesh() -> Mesh:
    """Return the mesh of all local devices, with the one axis `rows`."""
    return Mesh(np.asarray(jax.local_devices()), ("rows",))


def device_shardings() -> tuple[NamedSharding, NamedSharding]:
    """Return two shardings over all local devices: replicated, and split by rows."""
    mesh = device_mesh()
    return NamedSharding(mesh, P()), NamedSharding(mesh, P("rows"))
