"""One training step as one pure function: encode, draw noise, differentiate, update.

Everything random follows from (seed, step, row of the batch), so a run resumes bit for bit and
does not depend on how rows lie on devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ic_jax.models.adapter import Adapter
from ic_jax.models.flux import Flux
from ic_jax.models.layers import Remat
from ic_jax.models.rope import Rope
from train.data.encoded_store import Embeddings
from train.encode import Batch, Frozen, Ids, Knobs, encode, row_keys
from train.objective import Examples, Trained, loss


@struct.dataclass
class State:
    """All that training changes."""

    trained: Trained  # float32 masters
    average: Trained | None  # exponential moving average of them
    opt_state: Any
    step: Int[Array, ""]  # global, over all stages
    bad: Int[Array, ""]  # steps in a row that were not finite

    @classmethod
    def start(
        cls, trained: Trained, optimizer: optax.GradientTransformation, *, average: bool
    ) -> Self:
        """The state before step 0; `trained` is cast to float32."""
        masters = jax.tree.map(lambda x: x.astype(jnp.float32), trained)
        copy = jax.tree.map(jnp.copy, masters) if average else None
        zero = jnp.zeros((), jnp.int32)
        return cls(masters, copy, optimizer.init(masters), zero, zero)


class Metrics(NamedTuple):
    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    row_loss: Float[Array, "b"]
    sigma: Float[Array, "b"]
    bad: Int[Array, ""]


def train_step(
    state: State,
    frozen: Frozen,
    batch: Batch,
    empty: Ids | Embeddings,
    rope: Rope,
    knobs: Knobs,
    seed: Int[Array, ""],
    *,
    optimizer: optax.GradientTransformation,
    timesteps: str,
    accumulate: int,
    remat: Remat,
    dtype: DTypeLike,
) -> tuple[State, Metrics]:
    """Update what is trained on one batch."""
    config = state.trained.config if isinstance(state.trained, Adapter) else None

    def examples(rows: tuple[Batch, Array]) -> Examples:
        return encode(frozen, *rows, empty, knobs, config, timesteps, dtype)

    keys = row_keys(seed, state.step, batch)
    value, gradient, row_loss, sigma = mean_gradient(
        state.trained, frozen.transformer, rope, examples, (batch, keys), accumulate, remat=remat
    )
    state, norm = apply_gradient(
        state, value, gradient, knobs.learning_rate, knobs.ema, optimizer=optimizer
    )
    return state, Metrics(value, norm, row_loss, sigma, state.bad)


def mean_gradient(
    trained: Trained,
    flux: Flux,
    rope: Rope,
    examples: Callable[[Any], Examples],
    rows: Any,
    parts: int,
    *,
    remat: Remat = "none",
) -> tuple[Array, Trained, Float[Array, "b"], Float[Array, "b"]]:
    """Loss and gradient over a batch computed in equal parts: the mean of the parts'.

    Args:
        examples: makes the examples of some rows, so that only a part's are in memory.
        rows: tree of arrays with the batch as leading axis.

    Returns: loss, gradient, and each row's own loss and noise level.
    """

    def part(sums: tuple, rows: Any) -> tuple[tuple, tuple]:
        e = examples(rows)
        (value, velocity), gradient = gradient_of(trained, flux, e, rope, remat=remat)
        row_loss = jnp.square(velocity - (e.noise - e.latents)).mean((1, 2))
        sums = jax.tree.map(lambda s, x: s + x / parts, sums, (value, gradient))
        return sums, (row_loss, e.sigma)

    # Part i takes every parts-th row, so that rows that lie together on a device stay there.
    split = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), rows
    )
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    (value, gradient), by_row = jax.lax.scan(part, zero, split)
    row_loss, sigma = (x.swapaxes(0, 1).reshape(-1) for x in by_row)
    return value, gradient, row_loss, sigma


def gradient_of(
    trained: Trained, flux: Flux, examples: Examples, rope: Rope, *, remat: Remat = "none"
) -> tuple[tuple[Array, Array], Trained]:
    """((loss, velocity), gradient with respect to `trained` alone)."""
    return jax.value_and_grad(loss, has_aux=True)(trained, flux, examples, rope, remat=remat)


def apply_gradient(
    state: State,
    value: Float[Array, ""],
    gradient: Trained,
    learning_rate: Float[Array, ""],
    ema: Float[Array, ""],
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[State, Float[Array, ""]]:
    """The state after one update, and the gradient's norm before clipping.

    Where loss or norm is not finite, nothing but the counters changes.
    """
    norm = optax.tree.norm(gradient)
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    updates, moments = optimizer.update(gradient, state.opt_state, state.trained)
    trained = jax.tree.map(lambda p, u: p - learning_rate * u, state.trained, updates)
    average = state.average
    if average is not None:
        average = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, average, trained)

    new, old = (trained, average, moments), (state.trained, state.average, state.opt_state)
    trained, average, moments = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    bad = jnp.where(good, 0, state.bad + 1)
    return State(trained, average, moments, state.step + 1, bad), norm
