"""The training step against PyTorch: loss, gradients and parameters over three steps."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax.flow import position_ids
from ic_jax.models.rope import rope_table
from tests.conftest import GOLDENS
from tests.golden import Golden
from tests.oracle import relative
from train.objective import Examples
from train.optimizer import optimizer
from train.recipe import Stage
from train.step import TrainState, apply_gradient, gradient_of, mean_gradient

pytestmark = pytest.mark.usefixtures("optax_promotes")


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return Golden(GOLDENS / "training.safetensors", tmp_path_factory.mktemp("golden"))


def stage(golden, **changes):
    settings = golden.config["optimizer"]
    return Stage(
        steps=golden.config["steps"],
        b1=settings["b1"],
        b2=settings["b2"],
        weight_decay=settings["weight_decay"],
        clip=golden.config["clip_global_norm"],
        **changes,
    )


def examples(golden, step):
    at = f"step/{step}/in/"
    return Examples(
        latents=golden[at + "latents"],
        noise=golden[at + "noise"],
        sigma=golden[at + "sigma"],
        prompt_embeds=golden[at + "prompt_embeds"],
        pooled=golden[at + "pooled"],
        features=golden.features(at),
        subject_scale=golden[at + "subject_scale"],
        guidance=jnp.full(len(golden[at + "sigma"]), golden.config["guidance"]),
    )


update = jax.jit(apply_gradient, static_argnames="optimizer")


def worst(ours, theirs):
    return max(jax.tree.leaves(jax.tree.map(relative, ours, theirs)))


def test_three_steps_equal_pytorch(golden):
    rule = optimizer("adamw", stage(golden))
    rope = rope_table(position_ids(7, *golden.config["grid"]), golden.flux.config)
    state = TrainState.start(golden.adapter, rule, ema=True)
    rate = jnp.float32(golden.config["optimizer"]["learning_rate"])
    gradient_fn = jax.jit(gradient_of)
    for step in range(golden.config["steps"]):
        out = f"step/{step}/out/"
        (loss, velocity), gradient = gradient_fn(
            state.params, golden.flux, examples(golden, step), rope
        )
        assert relative(loss, golden[out + "loss"]) < 1e-5
        assert relative(velocity, golden[out + "velocity"]) < 1e-5
        assert relative(optax.tree.norm(gradient), golden[out + "grad_norm"]) < 1e-4
        if step == 0:
            clip = optax.clip_by_global_norm(golden.config["clip_global_norm"])
            clipped, _ = clip.update(gradient, clip.init(state.params))
            assert worst(clipped, golden.adapter_at("step/0/grad_after_clip/")) < 1e-4
        state, _ = update(state, loss, gradient, rate, jnp.float32(0.9), optimizer=rule)
    assert worst(state.params, golden.adapter_at("after/")) < 1e-4
    assert int(state.step) == golden.config["steps"]


def test_errors_count_by_their_weight(golden):
    rope = rope_table(position_ids(7, *golden.config["grid"]), golden.flux.config)
    alike = examples(golden, 0)
    gradient_fn = jax.jit(gradient_of)
    (loss, velocity), gradient = gradient_fn(golden.adapter, golden.flux, alike, rope)

    def weighted(weight):
        weighted_examples = alike._replace(weight=weight)
        return gradient_fn(golden.adapter, golden.flux, weighted_examples, rope)

    (ones, _), same = weighted(jnp.ones_like(alike.latents))
    assert relative(ones, loss) < 1e-6
    assert worst(same, gradient) < 1e-5
    first = jnp.zeros_like(alike.latents).at[:, 0].set(2.0)
    (value, same_velocity), other = weighted(first)
    error = jnp.square(velocity - (alike.noise - alike.latents))
    assert relative(value, 2 * error[:, 0].mean() / alike.latents.shape[1]) < 1e-5
    assert relative(same_velocity, velocity) < 1e-6
    assert worst(other, gradient) > 0.1


@pytest.mark.parametrize(
    ("devices", "parts", "remat"),
    [
        # Slow: each compiles a gradient of its own; test_sharding's steps are of a mesh, too.
        pytest.param(8, 3, "blocks", marks=pytest.mark.slow),
        pytest.param(8, 1, "none", marks=pytest.mark.rare),  # parts and mesh as above
        pytest.param(1, 3, "dots", marks=pytest.mark.rare),  # parts as above
    ],
)
def test_sharded_accumulated_and_recomputed_gradients_are_the_same(golden, devices, parts, remat):
    """Each example eight times over has the gradient of each once."""
    rope = rope_table(position_ids(7, *golden.config["grid"]), golden.flux.config)
    once = examples(golden, 0)
    (loss, _), gradient = jax.jit(gradient_of)(golden.adapter, golden.flux, once, rope)

    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    batch = jax.tree.map(lambda x: jnp.repeat(x, 8, axis=0), once)
    batch = jax.device_put(batch, NamedSharding(mesh, P("data")))
    models = jax.device_put((golden.adapter, golden.flux, rope), NamedSharding(mesh, P()))
    spread = jax.jit(lambda a, f, r, b: mean_gradient(a, f, r, lambda e: e, b, parts, remat=remat))
    value, ours, per_example_loss, sigma, part_square = spread(*models, batch)
    assert len(value.sharding.device_set) == devices
    assert relative(value, loss) < 1e-5
    assert worst(ours, gradient) < 1e-5
    assert relative(per_example_loss.mean(), loss) < 1e-5
    assert relative(sigma, batch.sigma) == 0
    assert (part_square is None) == (parts == 1)


def test_a_step_that_is_not_finite_changes_nothing_but_counts(golden):
    rule = optimizer("adamw", stage(golden))
    state = TrainState.start(golden.adapter, rule, ema=True)
    gradient = jax.tree.map(jnp.ones_like, golden.adapter)
    rate = jnp.float32(1e-3)
    for bad_loss, bad_gradient in ((jnp.nan, 1.0), (1.0, jnp.inf), (1.0, jnp.nan)):
        broken = jax.tree.map(lambda x, bad=bad_gradient: x * bad, gradient)
        after, _ = update(state, jnp.float32(bad_loss), broken, rate, rate, optimizer=rule)
        for field in ("params", "ema_params", "opt_state"):
            before = jax.tree.leaves(getattr(state, field))
            for a, b in zip(jax.tree.leaves(getattr(after, field)), before, strict=True):
                assert (a == b).all()
        assert (int(after.nonfinite_steps), int(after.step)) == (
            int(state.nonfinite_steps) + 1,
            int(state.step) + 1,
        )
        state = after
    healed, _ = update(state, jnp.float32(1.0), gradient, rate, rate, optimizer=rule)
    assert int(healed.nonfinite_steps) == 0
    assert worst(healed.params, state.params) > 0
