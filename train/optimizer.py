"""Optimisers of the trainable parameters; the learning rate is an argument of the step.

    "adamw"            both of Adam's moments in float32
    "adamw-bfloat16"   both in bfloat16, in half the memory
    "adafactor"        a momentum in bfloat16, and of the second moment rows and columns only

All clip the gradient by its global norm first and decay weights apart from the gradient.
"""

from functools import cache, partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float32
from optax import GradientTransformation

from train.recipe import OptimizerName, Recipe, Stage


def optimizer(name: OptimizerName, stage: Stage) -> GradientTransformation:
    """Return a recipe's optimiser with a stage's settings; the step multiplies by -learning rate.

    The state has the same structure for every stage, so moments carry over. Stages of equal
    settings get the same object, so that they share one compiled step.
    """
    return _chain(name, stage.clip, stage.b1, stage.b2, stage.weight_decay)


@cache
def _chain(
    name: OptimizerName, clip: float, b1: float, b2: float, weight_decay: float
) -> GradientTransformation:
    assert name in get_args(OptimizerName)
    adam = optax.scale_by_adam(b1=b1, b2=b2)
    rule = {
        "adamw": adam,
        "adamw-bfloat16": in_bfloat16(adam, "mu", "nu"),
        "adafactor": adafactor(b1, b2),
    }
    return optax.chain(
        optax.clip_by_global_norm(clip), rule[name], optax.add_decayed_weights(weight_decay)
    )


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
    moments = {"adamw": 2.0, "adamw-bfloat16": 1.0, "adafactor": 0.5}[recipe.optimizer]
    parameters_and_gradient = 2.0
    return parameters_and_gradient + recipe.averages + moments


def learning_rate(stage: Stage, step_in_stage: int) -> float:
    """Return the rate of a step: linear warm-up within the stage, then constant [WithAnyone]."""
    return stage.learning_rate * min(1.0, (step_in_stage + 1) / max(1, stage.warmup))
