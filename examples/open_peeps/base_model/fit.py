"""Trainer for modules and data that fit into memory: AdamW, cosine rate, averaged parameters.

Every local device computes a part of each batch. On a CPU, one device per core
(examples/open_peeps/NOTES.md) is faster than one device that splits each operation over the cores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from tqdm import tqdm

from ic_jax.config import ConfigError
from ic_jax.files import atomic_file

M = TypeVar("M")
SAVE_EVERY = 500  # steps


@dataclass(frozen=True)
class FitOptions:
    """Length and rate of a training, and the file of its state."""

    steps: int
    batch: int
    learning_rate: float
    seed: int
    checkpoint: Path  # written on the way, and resumed from if it exists
    warmup: int = 100  # steps
    ema: float = 0.998  # decay of the averaged parameters


def fit(
    name: str,
    module: M,
    loss: Callable[[M, Any, Array], Array],
    data: Any,
    options: FitOptions,
) -> tuple[M, list[float]]:
    """Train a module; return its averaged parameters and the loss in up to 40 equal intervals.

    The state is saved every `SAVE_EVERY` steps and at the end, and an interrupted call resumes
    from it. The caller removes the checkpoint once the module is stored.

    Args:
        name: label of the progress bar.
        module: initial parameters; their buffers are donated.
        loss: function of (module, batch, random key).
        data: an array, or a tree of arrays, from whose rows batches are sampled.

    Raises:
        ConfigError: the batch does not divide over the local devices.
    """
    warmup = min(options.warmup, options.steps // 4)
    rate = optax.warmup_cosine_decay_schedule(0, options.learning_rate, warmup, options.steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.01)
    )

    def update(state: tuple, batch: Any, key: Array) -> tuple[tuple, Array]:
        module, ema, opt_state, count = state
        value, gradient = jax.value_and_grad(loss)(module, batch, key)
        updates, opt_state = optimizer.update(gradient, opt_state, module)
        module = optax.apply_updates(module, updates)
        # Start with a plain mean: a fixed decay would remember the initial parameters too long.
        decay = jnp.minimum(options.ema, (1 + count) / (10 + count))
        ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, module)
        return (module, ema, opt_state, count + 1), value

    devices = jax.local_devices()
    if options.batch % len(devices):
        raise ConfigError(
            f"a batch of {options.batch} rows does not divide over {len(devices)} devices; "
            "use a multiple of that, or fewer devices"
        )
    replicated, by_rows = device_shardings()
    step = jax.jit(update, donate_argnums=0)
    state = (module, jax.tree.map(jnp.copy, module), optimizer.init(module), jnp.zeros(()))
    state, losses, start = _restore(options.checkpoint, state)
    state = jax.device_put(state, replicated)
    rows, key = len(jax.tree.leaves(data)[0]), jax.random.key(options.seed)
    bar = tqdm(
        range(start, options.steps),
        desc=name,
        unit="step",
        initial=start,
        total=options.steps,
        mininterval=5,
    )
    for n in bar:
        indices = np.random.default_rng((options.seed, n)).integers(rows, size=options.batch)
        batch = jax.tree.map(lambda x, at=indices: x[at], data)
        batch = jax.device_put(batch, by_rows)
        state, value = step(state, batch, jax.random.fold_in(key, n))
        losses.append(float(value))
        bar.set_postfix(loss=round(float(np.mean(losses[-100:])), 4), refresh=False)
        if (n + 1) % SAVE_EVERY == 0 or n + 1 == options.steps:
            _save(options.checkpoint, state, losses)
    intervals = np.array_split(losses, min(40, len(losses)))
    average = jax.tree.map(jnp.asarray, jax.device_get(state[1]))
    return average, [round(float(np.mean(interval)), 5) for interval in intervals]


def device_shardings() -> tuple[NamedSharding, NamedSharding]:
    """Return two shardings over all local devices: replicated, and split by rows."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("rows",))
    return NamedSharding(mesh, P()), NamedSharding(mesh, P("rows"))


def _save(path: Path, state: Any, losses: list[float]) -> None:
    with atomic_file(path) as part, part.open("wb") as file:
        np.savez(file, *jax.device_get(jax.tree.leaves(state)), losses=np.asarray(losses))


def _restore(path: Path, state: Any) -> tuple[Any, list[float], int]:
    """Return the saved state, the losses so far, and the next step."""
    if not path.exists():
        return state, [], 0
    with np.load(path) as arrays:
        losses = arrays["losses"].tolist()
        leaves = [jnp.asarray(arrays[f"arr_{n}"]) for n in range(len(arrays.files) - 1)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), losses, len(losses)
