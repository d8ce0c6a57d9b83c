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
from jaxtyping import Array, Float, Int, UInt8

from ic_jax.config import AdapterConfig
from ic_jax.features import subject_features
from ic_jax.flow import pack
from ic_jax.models.adapter import Adapter
from ic_jax.models.clip import ClipText
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.flux import Flux
from ic_jax.models.rope import Rope
from ic_jax.models.siglip import SiglipVision
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.vae import Vae
from train.objective import Examples, loss


class Frozen(NamedTuple):
    """The base: arguments of the step like the batch, never its results."""

    transformer: Flux
    vae: Vae
    siglip: SiglipVision
    dinov2: Dinov2
    t5: T5Encoder
    clip: ClipText


class Batch(NamedTuple):
    """One batch as the loader gives it, prompts as ids."""

    target: UInt8[Array, "b h w 3"]
    low: UInt8[Array, "b s s 3"]  # the reference whole, and in four tiles
    high: UInt8[Array, "b 4 s s 3"]
    clip_ids: Int[Array, "b n"]
    t5_ids: Int[Array, "b t"]


class Empty(NamedTuple):
    """The empty prompt's ids, for text dropout."""

    clip_ids: Int[Array, "n"]
    t5_ids: Int[Array, "t"]


@struct.dataclass
class Knobs:
    """A stage's numbers that the step takes as arguments: changing them compiles nothing."""

    learning_rate: Float[Array, ""]
    shift: Float[Array, ""]  # of noise levels, e^mu; 1 is none
    guidance: Float[Array, ""]
    text_dropout: Float[Array, ""]
    subject_dropout: Float[Array, ""]
    ema: Float[Array, ""]


@struct.dataclass
class State:
    """All that training changes."""

    adapter: Adapter  # float32 masters
    average: Adapter | None  # exponential moving average of them
    optimizer: Any
    step: Int[Array, ""]  # global, over all stages
    bad: Int[Array, ""]  # steps in a row that were not finite

    @classmethod
    def start(cls, adapter: Adapter, rule: optax.GradientTransformation, *, average: bool) -> Self:
        """The state before step 0; `adapter` is cast to float32."""
        masters = jax.tree.map(lambda x: x.astype(jnp.float32), adapter)
        copy = jax.tree.map(jnp.copy, masters) if average else None
        zero = jnp.zeros((), jnp.int32)
        return cls(masters, copy, rule.init(masters), zero, zero)


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
    empty: Empty,
    rope: Rope,
    knobs: Knobs,
    seed: Int[Array, ""],
    *,
    rule: optax.GradientTransformation,
    config: AdapterConfig,
    timesteps: str,
    accumulate: int,
    remat: bool,
    dtype: DTypeLike,
) -> tuple[State, Metrics]:
    """Update the adapter on one batch."""

    def examples(rows: tuple[Batch, Array]) -> Examples:
        return encode(frozen, *rows, empty, knobs, config, timesteps, dtype)

    keys = row_keys(seed, state.step, batch.target.shape[0])
    value, gradient, row_loss, sigma = mean_gradient(
        state.adapter, frozen.transformer, rope, examples, (batch, keys), accumulate, remat=remat
    )
    state, norm = apply_gradient(state, value, gradient, knobs.learning_rate, knobs.ema, rule=rule)
    return state, Metrics(value, norm, row_loss, sigma, state.bad)


def mean_gradient(
    adapter: Adapter,
    flux: Flux,
    rope: Rope,
    examples: Callable[[Any], Examples],
    rows: Any,
    parts: int,
    *,
    remat: bool = False,
) -> tuple[Array, Adapter, Float[Array, "b"], Float[Array, "b"]]:
    """Loss and gradient over a batch computed in equal parts: the mean of the parts'.

    Args:
        examples: makes the examples of some rows, so that only a part's are in memory.
        rows: tree of arrays with the batch as leading axis.

    Returns: loss, gradient, and each row's own loss and noise level.
    """

    def part(sums: tuple, rows: Any) -> tuple[tuple, tuple]:
        e = examples(rows)
        (value, velocity), gradient = gradient_of(adapter, flux, e, rope, remat=remat)
        row_loss = jnp.square(velocity - (e.noise - e.latents)).mean((1, 2))
        sums = jax.tree.map(lambda s, x: s + x / parts, sums, (value, gradient))
        return sums, (row_loss, e.sigma)

    # Part i takes every parts-th row, so that rows that lie together on a device stay there.
    split = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), rows
    )
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, adapter))
    (value, gradient), by_row = jax.lax.scan(part, zero, split)
    row_loss, sigma = (x.swapaxes(0, 1).reshape(-1) for x in by_row)
    return value, gradient, row_loss, sigma


def gradient_of(
    adapter: Adapter, flux: Flux, examples: Examples, rope: Rope, *, remat: bool = False
) -> tuple[tuple[Array, Array], Adapter]:
    """((loss, velocity), gradient with respect to the adapter alone)."""
    return jax.value_and_grad(loss, has_aux=True)(adapter, flux, examples, rope, remat=remat)


def apply_gradient(
    state: State,
    value: Float[Array, ""],
    gradient: Adapter,
    learning_rate: Float[Array, ""],
    ema: Float[Array, ""],
    *,
    rule: optax.GradientTransformation,
) -> tuple[State, Float[Array, ""]]:
    """The state after one update, and the gradient's norm before clipping.

    Where loss or norm is not finite, nothing but the counters changes.
    """
    norm = optax.tree.norm(gradient)
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    updates, moments = rule.update(gradient, state.optimizer, state.adapter)
    adapter = jax.tree.map(lambda p, u: p - learning_rate * u, state.adapter, updates)
    average = state.average
    if average is not None:
        average = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, average, adapter)

    new, old = (adapter, average, moments), (state.adapter, state.average, state.optimizer)
    adapter, average, moments = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    bad = jnp.where(good, 0, state.bad + 1)
    return State(adapter, average, moments, state.step + 1, bad), norm


def row_keys(seed: Int[Array, ""], step: Int[Array, ""], rows: int) -> Array:
    """One random key for each row of a batch."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def encode(
    frozen: Frozen,
    batch: Batch,
    keys: Array,
    empty: Empty,
    knobs: Knobs,
    config: AdapterConfig,
    timesteps: str,
    dtype: DTypeLike,
) -> Examples:
    """Run the frozen encoders, and draw each row's noise, noise level and dropouts."""
    draws = jax.vmap(lambda key: jax.random.split(key, 5))(keys)
    drop_text, drop_subject = (
        jax.vmap(jax.random.bernoulli, (0, None))(draws[:, i], p)
        for i, p in enumerate((knobs.text_dropout, knobs.subject_dropout))
    )
    clip_ids = jnp.where(drop_text[:, None], empty.clip_ids, batch.clip_ids)
    t5_ids = jnp.where(drop_text[:, None], empty.t5_ids, batch.t5_ids)

    pixels = (batch.target.astype(jnp.float32) / 127.5 - 1).astype(dtype)
    mean, logvar = (x.astype(jnp.float32) for x in frozen.vae.encode(pixels))
    raw = mean + jnp.exp(logvar / 2) * _normal(draws[:, 2], mean.shape[1:])
    latents = pack(frozen.vae.to_latents(raw))
    return Examples(
        latents=latents,
        noise=_normal(draws[:, 3], latents.shape[1:]),
        sigma=noise_levels(draws[:, 4], timesteps, knobs.shift),
        prompt_embeds=frozen.t5(t5_ids),
        pooled=frozen.clip(clip_ids),
        features=subject_features(
            frozen.siglip, frozen.dinov2, config, batch.low, batch.high, dtype
        ),
        subject_scale=1.0 - drop_subject.astype(jnp.float32),
        guidance=jnp.full(len(keys), knobs.guidance),
    )


def noise_levels(keys: Array, timesteps: str, shift: Float[Array, ""]) -> Float[Array, "b"]:
    """Noise levels in 0..1, logit-normal (Stable Diffusion 3, arXiv 2403.03206) or uniform,
    then shifted as FLUX's schedule is for the picture's length."""
    if timesteps == "logit-normal":
        sigma = jax.nn.sigmoid(jax.vmap(jax.random.normal)(keys))
    else:
        # Not 0 and not 1: at either end the velocity cannot be told from the input.
        sigma = jax.vmap(lambda k: jax.random.uniform(k, minval=1e-3, maxval=1 - 1e-3))(keys)
    return shift / (shift + 1 / sigma - 1)


def _normal(keys: Array, shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
