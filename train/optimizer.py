"""Optimisers of the trainable parameters; the learning rate is an argument of each update.

    "adamw"            both of Adam's moments in float32
    "adamw-bfloat16"   both in bfloat16, in half the memory
    "adafactor"        a momentum in bfloat16, and of the second moment rows and columns only
    "prodigy"          Adam at a rate of its own estimate; the learning rate is a factor of it
    "schedule-free"    Adam whose momentum is replaced by an average of all steps

All clip the gradient by its global norm first and decay weights apart from the gradient.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float, Float32
from optax import GradientTransformation, GradientTransformationExtraArgs
from optax.contrib import ProdigyState, ScheduleFreeState, schedule_free_eval_params

from train.optimizer_settings import OptimizerName
from train.recipe import Recipe, Stage

Rate = Float[Array, ""]


def optimizer(name: OptimizerName, stage: Stage) -> GradientTransformationExtraArgs:
    """Return a recipe's optimiser with a stage's settings; `update` takes `learning_rate`.

    The state has the same structure for every stage, so moments carry over. Stages of equal
    settings get the same object, so that they share one compiled step.
    """
    return _chain(name, stage.clip, stage.b1, stage.b2, stage.weight_decay)


@cache
def _chain(
    name: OptimizerName, clip: float, b1: float, b2: float, weight_decay: float
) -> GradientTransformationExtraArgs:
    clipped = optax.clip_by_global_norm(clip)
    if name == "prodigy":
        return optax.chain(clipped, prodigy(b1, b2, weight_decay))
    if name == "schedule-free":
        return optax.chain(clipped, schedule_free(b1, b2, weight_decay))
    adam = optax.scale_by_adam(b1=b1, b2=b2)
    rule = {
        "adamw": adam,
        "adamw-bfloat16": in_bfloat16(adam, "mu", "nu"),
        "adafactor": adafactor(b1, b2),
    }
    decayed = optax.add_decayed_weights(weight_decay)
    return optax.chain(clipped, rule[name], decayed, _at_rate(optax.scale_by_learning_rate))


def _at_rate(rule: Callable[[Any], GradientTransformation]) -> GradientTransformationExtraArgs:
    """Return the transformation that `rule` makes of a learning rate, given at each update.

    The stages' schedules follow each other, which a schedule over the state's count cannot say.
    """

    def update(
        gradient: Any, state: Any, params: Any = None, *, learning_rate: Rate, **_: Any
    ) -> tuple[Any, Any]:
        return rule(learning_rate).update(gradient, state, params)

    return GradientTransformationExtraArgs(rule(0.0).init, update)


def prodigy(b1: float, b2: float, weight_decay: float) -> GradientTransformationExtraArgs:
    """Return Prodigy (arXiv 2306.06101), whose rate is the learning rate times its estimate.

    A warm-up does not disturb the estimate (`safeguard_warmup`) [OminiControl].
    """

    def rule(rate: Any) -> GradientTransformation:
        settings: Any = {"weight_decay": weight_decay, "safeguard_warmup": True}
        inner = optax.contrib.prodigy(rate, (b1, b2), **settings)
        # Its state has the first parameters, which a donated step must not share with the last.
        return inner._replace(init=lambda params: inner.init(jax.tree.map(jnp.copy, params)))

    return _at_rate(rule)


def schedule_free(b1: float, b2: float, weight_decay: float) -> GradientTransformationExtraArgs:
    """Return Schedule-Free AdamW (arXiv 2405.15682); `evaluated` has the weights to draw with.

    The parameters are where the gradient is taken: `b1` of the way from the steps' last point to
    their average.
    """

    def rule(rate: Any) -> GradientTransformation:
        adam = optax.scale_by_rms(decay=b2, eps=1e-8, eps_in_sqrt=False, bias_correction=True)
        decayed = optax.add_decayed_weights(weight_decay)
        step = optax.chain(adam, decayed, optax.scale_by_learning_rate(rate))
        return optax.contrib.schedule_free(step, rate, b1)

    return _at_rate(rule)


def evaluated(opt_state: Any, params: Any) -> Any:
    """Return the weights to draw with: Schedule-Free's average; of other optimisers `params`."""
    state = _state(opt_state, ScheduleFreeState)
    return params if state is None else _average(state, params)


_average = jax.jit(schedule_free_eval_params)


def estimates(opt_state: Any) -> dict[str, float]:
    """Return the figures that an optimiser has of its own to report, by name."""
    state = _state(opt_state, ProdigyState)
    return {} if state is None else {"prodigy rate": float(state.estim_lr)}


def _state(opt_state: Any, kind: type) -> Any:
    """Return the part of a chain's state that is of a kind, or None."""
    return next((state for state in opt_state if isinstance(state, kind)), None)


def in_bfloat16(rule: GradientTransformation, *names: str) -> GradientTransformation:
    """Return a transformation that computes in float32 but keeps parts of its state in bfloat16.

    The second moment is rounded at random. At b2 = 0.999 a step lowers it by a thousandth of itself
    at most, less than half the distance to the next bfloat16 (1/256 to 1/128): rounded to nearest,
    it would never fall. The first, at b1 = 0.9, moves a hundred times as far.

    Args:
        rule: a transformation whose state is a named tuple with a field `count`.
        names: fields of the state; "nu" is rounded at random, others to nearest.
    """

    def keep(state: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), state.count)
        kept = {
            name: _rounded_at_random(getattr(state, name), key)
            if name == "nu"
            else optax.tree.cast(getattr(state, name), jnp.bfloat16)
            for name in names
        }
        return state._replace(**kept)

    def init(params: Any) -> Any:
        return keep(rule.init(params))

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        exact = {name: optax.tree.cast(getattr(state, name), jnp.float32) for name in names}
        updates, state = rule.update(gradient, state._replace(**exact), params)
        return updates, keep(state)

    return GradientTransformation(init, update)


def _rounded_at_random(tree: Any, key: Array) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    rounded = [rounded_at_random(x, jax.random.fold_in(key, i)) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, rounded)


def rounded_at_random(x: Float32[Array, "*n"], key: Array) -> BFloat16[Array, "*n"]:
    """Round to one of the two nearest bfloat16, so that the expectation is `x`."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of a float32: random lower halves carry in proportion to the rest.
    bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = (bits >> jnp.uint32(16)).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(upper, jnp.bfloat16)


def adafactor(b1: float, b2: float) -> GradientTransformation:
    """Return Adafactor (arXiv 1804.04235) without its own learning rate, as ViT-G was trained.

    That is: decay of the second moment 1 - t^-0.8, at most `b2`; momentum `b1` of the updates in
    bfloat16 (arXiv 2106.04560, section 3.4). The mean square of an array's update is at most 1.
    """

    def decay(step: Array, exponent: float) -> Array:
        return jnp.minimum(b2, 1.0 - (step.astype(jnp.float32) + 1.0) ** -exponent)

    return optax.chain(
        _by_path(optax.scale_by_factored_rms(decay_rate_fn=decay)),
        optax.clip_by_block_rms(1.0),
        in_bfloat16(optax.ema(b1, debias=False), "ema"),
    )


def _by_path(rule: GradientTransformation) -> GradientTransformation:
    """Return a transformation whose state holds arrays by path in place of parameters.

    Rows and columns of a parameter have not its axes, by which it would be sharded; they are
    small, and replicated.
    """

    def update(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = rule.update(_named(gradient), state, _named(params))
        names = _named(gradient)
        return jax.tree.unflatten(jax.tree.structure(gradient), [updates[n] for n in names]), state

    return GradientTransformation(lambda params: rule.init(_named(params)), update)


def _named(tree: Any) -> dict[str, Array]:
    name = partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def state_copies(recipe: Recipe) -> float:
    """Return the size of state and gradient on the devices, over that of the parameters."""
    parameters_and_gradient = 2.0
    return parameters_and_gradient + recipe.averages + _COPIES[recipe.optimizer]


# Size of an optimiser's state, over that of the parameters.
_COPIES: dict[OptimizerName, float] = {
    "adamw": 2.0,
    "adamw-bfloat16": 1.0,
    "adafactor": 0.5,
    "prodigy": 4.0,  # both moments, a sum of gradients, and the first parameters
    "schedule-free": 2.0,  # the second moment, and the last point
}
