"""Learning rate of each step of a stage, by optax's schedules."""

from functools import cache

import numpy as np
import optax

from train.recipe import Stage


def learning_rate(stage: Stage, step_in_stage: int) -> float:
    """Return the rate of a step, counted from 0 within the stage.

    It rises linearly over `warmup` steps, the first of which has a rate above 0 [WithAnyone]. Then
    it is constant, or falls to `floor` times the rate, which the step after the last would have:
    "linear" and "cosine" at once, "wsd" linearly over the last `decay` of the stage's steps
    (warm-up, stable, decay: arXiv 2405.18392).
    """
    return float(_rates(stage)[step_in_stage])


@cache
def _rates(stage: Stage) -> np.ndarray:
    """Return the rates of all steps of a stage, float32 [steps].

    All at once, since optax computes on the device: one by one, each would wait for the steps
    that are queued there.
    """
    rates = _schedule(stage)(np.arange(stage.steps, dtype=np.float32))
    return np.broadcast_to(np.asarray(rates, np.float32), stage.steps)


def _schedule(stage: Stage) -> optax.Schedule:
    peak, floor, warmup = stage.learning_rate, stage.floor, stage.warmup
    first = warmup  # of the steps at which the rate falls
    if stage.schedule == "wsd":
        first = max(warmup, stage.steps - round(stage.decay * stage.steps))
    falling = max(1, stage.steps - first)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, floor * peak, falling),
        "cosine": optax.cosine_decay_schedule(peak, falling, floor),
        "wsd": optax.linear_schedule(peak, floor * peak, falling, first - warmup),
    }[stage.schedule]
    if not warmup:
        return after
    rising = optax.constant_schedule(peak)
    if warmup > 1:
        rising = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rising, after], [warmup])
