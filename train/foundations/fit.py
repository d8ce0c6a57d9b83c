"""Fitting a module to arrays in memory: AdamW, a cosine rate, averaged parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from tqdm import tqdm

M = TypeVar("M")


@dataclass(frozen=True)
class Fit:
    """How long and how fast."""

    steps: int
    batch: int
    learning_rate: float
    seed: int
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

    Args:
        name: of the progress bar.
        module: to start from; its buffers are given up.
        loss: of (module, batch, random key).
        data: an array, or a tree of them, whose rows batches are drawn from.
    """
    every = max(1, options.steps // 40)
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

    step = jax.jit(update, donate_argnums=0)
    state = (module, jax.tree.map(jnp.copy, module), rule.init(module), jnp.zeros(()))
    rows = len(jax.tree.leaves(data)[0])
    rng, key = np.random.default_rng(options.seed), jax.random.key(options.seed)
    losses: list[Array] = []
    curve: list[float] = []
    bar = tqdm(range(options.steps), desc=name, unit="step", mininterval=5)
    for n in bar:
        chosen = rng.integers(rows, size=options.batch)
        batch = jax.tree.map(lambda x, at=chosen: x[at], data)
        state, value = step(state, batch, jax.random.fold_in(key, n))
        losses.append(value)
        if len(losses) == every or n + 1 == options.steps:
            curve.append(round(float(np.mean(jax.device_get(losses))), 5))
            bar.set_postfix(loss=curve[-1], refresh=False)
            losses.clear()
    return state[1], curve
