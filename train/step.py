"""Training step as one pure function: encode, sample noise, differentiate, update.

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
from train.encode import Frozen, Ids, StepBatch, StepScalars, encode, row_keys
from train.noise_scale import GradientNoise, gradient_noise
from train.objective import Examples, Trainable, loss


@struct.dataclass
class TrainState:
    """Training state: everything that a step changes."""

    params: Trainable  # float32 masters
    ema_params: Trainable | None  # their exponential moving average
    opt_state: Any
    step: Int[Array, ""]  # global, over all stages
    nonfinite_steps: Int[Array, ""]  # in a row, up to this one

    @classmethod
    def start(
        cls, params: Trainable, optimizer: optax.GradientTransformation, *, ema: bool
    ) -> Self:
        """Return the state before step 0, with `params` cast to float32."""
        masters = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        copy = jax.tree.map(jnp.copy, masters) if ema else None
        zero = jnp.zeros((), jnp.int32)
        return cls(masters, copy, optimizer.init(masters), zero, zero)


class Metrics(NamedTuple):
    """Figures of one step, on the devices."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    per_example_loss: Float[Array, "b"]
    sigma: Float[Array, "b"]
    nonfinite_steps: Int[Array, ""]
    noise: GradientNoise | None  # None where the batch is computed in one part


class MeanGradient(NamedTuple):
    """Gradient of a batch, and what was seen of its rows and parts."""

    loss: Float[Array, ""]
    gradient: Trainable
    per_example_loss: Float[Array, "b"]
    sigma: Float[Array, "b"]
    part_square: Float[Array, ""] | None  # mean squared norm of the parts' gradients, if several


def train_step(
    state: TrainState,
    frozen: Frozen,
    batch: StepBatch,
    empty: Ids | Embeddings,
    rope: Rope,
    scalars: StepScalars,
    seed: Int[Array, ""],
    *,
    optimizer: optax.GradientTransformationExtraArgs,
    timesteps: str,
    accumulate: int,
    remat: Remat,
    dtype: DTypeLike,
) -> tuple[TrainState, Metrics]:
    """Update the trainable parameters on one batch."""
    config = state.params.config if isinstance(state.params, Adapter) else None

    def examples(rows: tuple[StepBatch, Array]) -> Examples:
        return encode(frozen, *rows, empty, scalars, config, timesteps, dtype)

    keys = row_keys(seed, state.step, batch)
    mean = mean_gradient(
        state.params, frozen.transformer, rope, examples, (batch, keys), accumulate, remat=remat
    )
    state, norm = apply_gradient(
        state, mean.loss, mean.gradient, scalars.learning_rate, scalars.ema, optimizer=optimizer
    )
    noise = None
    if mean.part_square is not None:
        rows = len(mean.sigma)
        noise = gradient_noise(mean.part_square, norm**2, part=rows // accumulate, batch=rows)
    rows_seen = (mean.per_example_loss, mean.sigma)
    return state, Metrics(mean.loss, norm, *rows_seen, state.nonfinite_steps, noise)


def mean_gradient(
    params: Trainable,
    flux: Flux,
    rope: Rope,
    examples: Callable[[Any], Examples],
    rows: Any,
    parts: int,
    *,
    remat: Remat = "none",
) -> MeanGradient:
    """Return loss and gradient of a batch, accumulated over equal parts of it.

    Args:
        examples: encodes the rows of one part, so that only one part is in memory at a time.
        rows: tree of arrays with the batch as leading axis.
    """

    def part(sums: tuple, rows: Any) -> tuple[tuple, tuple]:
        e = examples(rows)
        (value, velocity), gradient = gradient_of(params, flux, e, rope, remat=remat)
        per_example_loss = jnp.square(velocity - (e.noise - e.latents)).mean((1, 2))
        sums = jax.tree.map(lambda s, x: s + x / parts, sums, (value, gradient))
        square = jnp.square(optax.tree.norm(gradient)) if parts > 1 else None
        return sums, (per_example_loss, e.sigma, square)

    # Part i takes every parts-th row, so that rows that lie together on a device stay there.
    split = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), rows
    )
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (value, gradient), (*by_row, squares) = jax.lax.scan(part, zero, split)
    per_example_loss, sigma = (x.swapaxes(0, 1).reshape(-1) for x in by_row)
    mean_square = None if squares is None else squares.mean()
    return MeanGradient(value, gradient, per_example_loss, sigma, mean_square)


def gradient_of(
    params: Trainable, flux: Flux, examples: Examples, rope: Rope, *, remat: Remat = "none"
) -> tuple[tuple[Array, Array], Trainable]:
    """Return ((loss, velocity), gradient with respect to `params` alone)."""
    return jax.value_and_grad(loss, has_aux=True)(params, flux, examples, rope, remat=remat)


def apply_gradient(
    state: TrainState,
    value: Float[Array, ""],
    gradient: Trainable,
    learning_rate: Float[Array, ""],
    ema: Float[Array, ""],
    *,
    optimizer: optax.GradientTransformationExtraArgs,
) -> tuple[TrainState, Float[Array, ""]]:
    """Return the state after one update, and the gradient's norm before clipping.

    Where the loss or the norm is not finite, only the counters change.
    """
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(
        gradient, state.opt_state, state.params, learning_rate=learning_rate
    )
    params = jax.tree.map(jnp.add, state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        ema_params = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, ema_params, params)

    new, old = (params, ema_params, opt_state), (state.params, state.ema_params, state.opt_state)
    params, ema_params, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    nonfinite_steps = jnp.where(finite, 0, state.nonfinite_steps + 1)
    return TrainState(params, ema_params, opt_state, state.step + 1, nonfinite_steps), norm
