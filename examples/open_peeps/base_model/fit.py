"""Fitting a module to arrays in memory: AdamW, a cosine rate, averaged parameters.

Every local device computes a part of each batch, so that on a CPU one device per core (see
docs/small-model.md) beats one that spreads each operation over the cores.
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
KEEP_EVERY = 500  # steps


@dataclass(frozen=True)
class Fit:
    """How long and how fast."""

    steps: int
    batch: int
    learning_rate: float
    seed: int
    kept: Path  # where the state is kept on the way, and gone on from
    warmup: int = 100  # steps
    ema: float = 0.998  # decay of the average that is returned


def fit(
    name: str,
    module: M,
    loss: Callable[[M, Any, Array], Array],
    data: Any,
    options: Fit,
) -> tuple[M, list[float]]:
    """The averaged module after all steps, and the mean loss of each fortieth of them.

    Stopped on its way, it goes on where its state was last kept: every `KEEP_EVERY` steps, and
    at the end, until the caller has the module safe and removes it.

    Args:
        name: of the progress bar.
        module: to start from; its buffers are given up.
        loss: of (module, batch, random key).
        data: an array, or a tree of them, whose rows batches are drawn from.

    Raises:
        ConfigError: the batch does not divide over the local devices.
    """
    warmup = min(options.warmup, options.steps // 4)
    rate = optax.warmup_cosine_decay_schedule(0, options.learning_rate, warmup, options.steps)
    rule = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.01)
    )

    def update(state: tuple, batch: Any, key: Array) -> tuple[tuple, Array]:
        module, average, moments, count = state
        value, gradient = jax.value_and_grad(loss)(module, batch, key)
        updates, moments = rule.update(gradient, moments, module)
        module = optax.apply_updates(module, updates)
        # The average starts as the mean of all so far: a fixed decay would keep the beginning.
        decay = jnp.minimum(options.ema, (1 + count) / (10 + count))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, module)
        return (module, average, moments, count + 1), value

    devices = jax.local_devices()
    if options.batch % len(devices):
        raise ConfigError(
            f"a batch of {options.batch} rows does not divide over {len(devices)} devices; "
            "use a multiple of that, or fewer devices"
        )
    whole, by_rows = over_devices()
    step = jax.jit(update, donate_argnums=0)
    state = (module, jax.tree.map(jnp.copy, module), rule.init(module), jnp.zeros(()))
    state, losses, start = _last_kept(options.kept, state)
    state = jax.device_put(state, whole)
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
        chosen = np.random.default_rng((options.seed, n)).integers(rows, size=options.batch)
        batch = jax.tree.map(lambda x, at=chosen: x[at], data)
        batch = jax.device_put(batch, by_rows)
        state, value = step(state, batch, jax.random.fold_in(key, n))
        losses.append(float(value))
        bar.set_postfix(loss=round(float(np.mean(losses[-100:])), 4), refresh=False)
        if (n + 1) % KEEP_EVERY == 0 or n + 1 == options.steps:
            _keep(options.kept, state, losses)
    parts = np.array_split(losses, min(40, len(losses)))
    average = jax.tree.map(jnp.asarray, jax.device_get(state[1]))
    return average, [round(float(np.mean(part)), 5) for part in parts]


def over_devices() -> tuple[NamedSharding, NamedSharding]:
    """Where parameters and rows go: to every local device, and shared out over them."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("rows",))
    return NamedSharding(mesh, P()), NamedSharding(mesh, P("rows"))


def _keep(path: Path, state: Any, losses: list[float]) -> None:
    with atomic_file(path) as part, part.open("wb") as file:
        np.savez(file, *jax.device_get(jax.tree.leaves(state)), losses=np.asarray(losses))


def _last_kept(path: Path, state: Any) -> tuple[Any, list[float], int]:
    """State and losses so far, and the step to go on with."""
    if not path.exists():
        return state, [], 0
    with np.load(path) as found:
        losses = found["losses"].tolist()
        leaves = [jnp.asarray(found[f"arr_{n}"]) for n in range(len(found.files) - 1)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), losses, len(losses)
