"""Optimisers: against transformers' Adafactor, in bfloat16, on meshes, over a resumed run."""

from dataclasses import replace
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax.sharding import make_mesh, parse, shardings
from ic_jax.weights import loading
from tests import parameters
from tests.toy import write_data, write_model
from train.checkpoints import Checkpoints
from train.commands import main
from train.export import read_params, recipe_in
from train.optimizer import (
    adafactor,
    estimates,
    evaluated,
    in_bfloat16,
    optimizer,
    rounded_at_random,
    state_copies,
)
from train.optimizer_settings import OptimizerName
from train.recipe import Recipe, Saving, Stage
from train.schedule import learning_rate
from train.step import TrainState, apply_gradient

pytestmark = pytest.mark.usefixtures("optax_promotes")

NAMES = get_args(OptimizerName)
SHAPES = {"kernel": (160, 144), "stack": (3, 160, 144), "bias": (144,)}


def random(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {k: (scale * rng.standard_normal(s)).astype(np.float32) for k, s in SHAPES.items()}


def same_but_for_ties(ours, theirs, rate):
    """Equal, but where a moment was rounded to the other of two bfloat16 at equal distance."""
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)), ours, theirs)
    error = np.concatenate([x.ravel() for x in jax.tree.leaves(differences)])
    assert (error > 1e-6).mean() < 1e-4
    assert error.max() < rate * 2.0**-8


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_adafactor_equals_transformers(b1):
    """Compare where b2 does not cap the decay, with a bfloat16 momentum in both."""
    rate, ours, rule = 2.0**-7, random(0), adafactor(b1, b2=1.0)
    theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in ours.items()}
    reference = transformers.Adafactor(
        list(theirs.values()), lr=rate, beta1=b1, scale_parameter=False, relative_step=False
    )
    state, update = rule.init(ours), jax.jit(rule.update)
    for step in range(5):
        gradient = random(step + 1, scale=10.0**-step)  # the second moment lags, the clip acts
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        reference.step()
        for parameter in theirs.values():
            momentum = reference.state[parameter]["exp_avg"]  # times the rate, a power of two
            momentum.copy_(momentum.bfloat16())
        updates, state = update(gradient, state, ours)
        ours = jax.tree.map(lambda p, u: p - rate * u, ours, updates)
    same_but_for_ties(ours, {k: v.detach().numpy() for k, v in theirs.items()}, rate)


def test_adafactor_keeps_rows_and_columns():
    rule = optimizer("adafactor", Stage(steps=1))
    sizes = [x.size for x in jax.tree.leaves(rule.init(random(0))) if x.dtype == jnp.float32]
    momentum = [x.size for x in jax.tree.leaves(rule.init(random(0))) if x.dtype == jnp.bfloat16]
    assert sum(sizes) < 0.05 * sum(momentum)
    assert sum(momentum) == sum(np.prod(shape) for shape in SHAPES.values())


def test_the_decay_of_adafactor_stops_at_b2():
    """After a long time of large gradients the moment still follows at the rate of b2."""
    rule = adafactor(0.0, b2=0.9)
    state, gradient = rule.init(random(0)), random(1)
    update = jax.jit(rule.update)
    for scale in [1.0] * 60 + [0.0] * 10:
        _, state = update(jax.tree.map(lambda g, s=scale: g * s, gradient), state, gradient)
    expected = np.square(gradient["bias"]) * 0.9**10
    np.testing.assert_allclose(state[0].v["bias"], expected, rtol=1e-4)


def test_random_rounding_takes_both_neighbours_in_proportion():
    x = jnp.float32(1 + 0.3 * 2.0**-7)  # 0.3 of the way from 1 to the next bfloat16
    many = rounded_at_random(jnp.full(100_000, x), jax.random.key(0)).astype(jnp.float32)
    assert set(np.unique(many)) == {1.0, 1 + 2.0**-7}
    assert float((many > 1).mean()) == pytest.approx(0.3, abs=0.01)
    exact = jnp.asarray([0.0, 1.0, -2.5, jnp.inf], jnp.float32)
    assert (rounded_at_random(exact, jax.random.key(1)) == exact).all()


def test_a_bfloat16_second_moment_follows_where_rounding_to_nearest_stalls():
    """One large gradient, then 2000 small ones: the moment falls to a seventh."""
    b2, steps, shape = 0.999, 2000, (4096,)
    adam = optax.scale_by_adam(b2=b2)
    rule = in_bfloat16(adam, "mu", "nu")

    def run(update, keep):
        def step(state, scale):
            _, state = update(jnp.full(shape, scale), state)
            return keep(state), None

        scales = jnp.where(jnp.arange(steps + 1) == 0, 1.0, 1e-3)
        return jax.lax.scan(step, keep(adam.init(jnp.zeros(shape))), scales)[0].nu

    def nearest(state):
        return state._replace(nu=state.nu.astype(jnp.bfloat16).astype(jnp.float32))

    exact = run(adam.update, lambda state: state)
    stalled = run(adam.update, nearest)
    kept = jax.lax.scan(
        lambda s, g: (rule.update(jnp.full(shape, g), s)[1], None),
        rule.init(jnp.zeros(shape)),
        jnp.where(jnp.arange(steps + 1) == 0, 1.0, 1e-3),
    )[0].nu
    assert kept.dtype == jnp.bfloat16
    assert float(stalled.mean() / exact.mean()) > 7
    assert float(kept.astype(jnp.float32).mean() / exact.mean()) == pytest.approx(1, abs=0.02)


def test_bfloat16_moments_hardly_change_adam():
    """A parabola: both come down to a thousandth of where they began, within 2% of each other."""
    ends = []
    for name in ("adamw", "adamw-bfloat16"):
        rule, start = optimizer(name, Stage(steps=1, clip=1e9)), random(0)
        params, state, update = start, rule.init(start), jax.jit(rule.update)
        for step in range(300):
            noise = random(step + 1, scale=0.3)
            gradient = jax.tree.map(jnp.add, params, noise)
            updates, state = update(gradient, state, params, learning_rate=2e-2)
            params = jax.tree.map(jnp.add, params, updates)
        ends.append(optax.tree.norm(params) / optax.tree.norm(start))
    assert ends[0] < 0.2
    assert float(ends[1]) == pytest.approx(float(ends[0]), rel=0.02)


@pytest.fixture(scope="module")
def adapter():
    """Parameters with axes, as the modules have them."""
    values = random(0)
    axes = {"kernel": ("embed", "heads"), "stack": ("layers", "embed", "mlp"), "bias": (None,)}
    return {k: nnx.Param(jnp.asarray(v), axes=axes[k]) for k, v in values.items()}


def placed(tree, places):
    return jax.tree.map(jax.device_put, tree, places)


def trained(adapter, name, mesh, *, steps=3):
    """The state after steps on a mesh, with clip, decay and average."""
    rule = optimizer(name, Stage(steps=1, weight_decay=0.01, clip=0.5))
    state = TrainState.start(adapter, rule, ema=True)
    places = shardings(state, mesh)
    state = placed(state, places)
    update = jax.jit(
        partial(apply_gradient, optimizer=rule), out_shardings=(places, NamedSharding(mesh, P()))
    )
    with jax.set_mesh(mesh):
        for step in range(steps):
            values = [jnp.asarray(v) for _, v in sorted(random(step + 1).items())]
            gradient = jax.tree.unflatten(jax.tree.structure(adapter), values)
            factor = 1e4 if name == "prodigy" else 1e-2  # of its own rate, 1e-6 at first
            value, rate, ema = (jnp.float32(x) for x in (1.0, factor, 0.9))
            state, _ = update(state, value, gradient, rate, ema)
    return state


def equal(a, b, **tolerance):
    compare = partial(np.testing.assert_allclose, **tolerance) if tolerance else None
    compare = compare or np.testing.assert_array_equal
    jax.tree.map(lambda x, y: compare(*(np.asarray(v, np.float32) for v in (x, y))), a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_mesh_changes_nothing(adapter, name):
    alone = trained(adapter, name, make_mesh(parse("data=1")))
    sharded = trained(adapter, name, make_mesh(parse("fsdp=2,tensor=2")))
    largest = max(jax.tree.leaves(sharded.opt_state), key=lambda x: x.size)
    assert largest.sharding.shard_shape(largest.shape) != largest.shape
    if name == "adamw":
        equal(sharded.params, alone.params, rtol=1e-6, atol=1e-7)
    same_but_for_ties(sharded.params, alone.params, rate=1e-2)
    assert float(jnp.abs(sharded.params["bias"][...] - adapter["bias"][...]).max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_not_finite_changes_no_state(adapter, name):
    rule = optimizer(name, Stage(steps=1))
    state = TrainState.start(adapter, rule, ema=True)
    gradient = jax.tree.map(lambda x: x * jnp.nan, adapter)
    rate = jnp.float32(1e-2)
    after, _ = apply_gradient(state, rate, gradient, rate, rate, optimizer=rule)
    for field in ("params", "ema_params", "opt_state"):
        equal(getattr(after, field), getattr(state, field))


STEPS = 6
RATED = Stage(steps=STEPS, warmup=2, learning_rate=0.1, weight_decay=0.01, clip=1e9)


def downhill(rule, steps, rate):
    """Take steps of one gradient; `rate` gives each step's arguments of `update`."""
    params, gradient, update = random(0), random(1), jax.jit(rule.update)
    state = rule.init(params)
    for step in range(steps):
        updates, state = update(gradient, state, params, **rate(step))
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_prodigy_is_optaxs_at_the_rates_of_a_stage(schedule):
    stage = replace(RATED, steps=40, schedule=schedule, learning_rate=1.0)
    rates = jnp.asarray([learning_rate(stage, step) for step in range(stage.steps)])
    settings = {"weight_decay": 0.01, "safeguard_warmup": True}
    theirs = optax.contrib.prodigy(lambda count: rates[count], **settings)
    expected, _ = downhill(theirs, stage.steps, lambda step: {})
    rule = optimizer("prodigy", stage)
    ours, state = downhill(rule, stage.steps, lambda step: {"learning_rate": rates[step]})
    equal(ours, expected, rtol=1e-6, atol=1e-7)
    assert estimates(state)["prodigy rate"] > 2e-6  # twice what it starts with
    assert estimates(optimizer("adamw", stage).init(random(0))) == {}


def test_schedule_free_is_evaluated_at_the_average_of_its_steps():
    rates = jnp.asarray([learning_rate(RATED, step) for step in range(STEPS)])
    rule, params = optimizer("schedule-free", RATED), random(0)
    state, average, weights = rule.init(params), params, 0.0
    equal(evaluated(state, params), params, rtol=1e-6)
    for step, rate in enumerate(rates):
        updates, state = rule.update(random(step + 1), state, params, learning_rate=rate)
        params = optax.apply_updates(params, updates)
        weight = float(rates[: step + 1].max()) ** 2
        weights += weight
        share, last = weight / weights, state[1].z
        average = jax.tree.map(lambda x, z, c=share: (1 - c) * x + c * z, average, last)
        equal(evaluated(state, params), average, rtol=1e-4, atol=1e-5)
        between = jax.tree.map(lambda x, z: 0.9 * x + 0.1 * z, average, last)
        equal(params, between, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("adamw", "linear"),
        ("adamw-bfloat16", "wsd"),
        ("adafactor", "cosine"),
        ("prodigy", "cosine"),
        ("schedule-free", "constant"),
    ],
)
def test_resumes_in_the_middle_of_a_schedule(name, schedule, adapter, tmp_path):
    """From a checkpoint after half of the steps, bit for bit as without."""
    stage = replace(RATED, schedule=schedule)
    rule = optimizer(name, stage)
    update = jax.jit(partial(apply_gradient, optimizer=rule))

    def run(state, first, end):
        for step in range(first, end):
            values = [jnp.asarray(v) for _, v in sorted(random(step + 1).items())]
            gradient = jax.tree.unflatten(jax.tree.structure(adapter), values)
            rate = jnp.float32(learning_rate(stage, step))
            state, _ = update(state, jnp.float32(1.0), gradient, rate, jnp.float32(0.9))
        return state

    start = TrainState.start(adapter, rule, ema=name != "schedule-free")
    half = run(start, 0, STEPS // 2)
    checkpoints = Checkpoints(tmp_path, Saving())
    checkpoints.save(STEPS // 2, half, {})
    checkpoints.wait()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), half)
    resumed = run(checkpoints.restore(abstract, {}), STEPS // 2, STEPS)
    checkpoints.close()
    equal(resumed, run(half, STEPS // 2, STEPS))


@pytest.mark.parametrize("ema", [0.0, 0.999])
@pytest.mark.parametrize("name", NAMES)
def test_sizes_at_full_size(name, ema):
    """`state_copies`, by which meshes are chosen, is the state's size, without an average too."""
    stages = {"stage1": Stage(steps=1, ema=ema)}
    recipe = Recipe(*["x"] * 3, stages, optimizer=name)
    rule = optimizer(name, stages["stage1"])
    adapter = parameters.full_size("instantcharacter")
    start = partial(TrainState.start, optimizer=rule, ema=recipe.averages)
    state = jax.eval_shape(start, adapter)
    of_state, of_params = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for tree in (state, state.params)
    )
    gradient = of_params
    assert (of_state + gradient) / of_params == pytest.approx(state_copies(recipe), rel=1e-3)


RECIPE = """
model = "{folder}/model"
data = "{folder}/data"
out = "{folder}/{run}"
dtype = "float32"
text_length = 16
holdout = 0.6
{choice}
[saving]
every = 1
[reporting]
every = 1
effect_every = 0
preview_every = 0
[stage1]
steps = 2
batch = 2
resolution = 32
weight_decay = 0.1
ema = 0.9
[stage2]
steps = 2
batch = 2
resolution = 32
[lora]
rank = 2
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_data(folder)
    return folder


def train(world, run, choice, *options):
    file = world / f"{run}.toml"
    file.write_text(RECIPE.format(folder=world, run=run, choice=choice))
    return main([str(file), "--no-compile-cache", *options])


def weights(folder):
    recipe = recipe_in(folder)
    base = loading.ModelFolder.open(recipe.model)
    return [read_params(folder, recipe, base, ema=ema)[1] for ema in (False, True)]


# In stage 2, each is resumed in the middle of its rates. All train a LoRA, which compiles in a
# quarter of the adapter's time; tests/test_train_runs.py resumes the adapter.
CHOICES = [
    # Each is three runs that compile a step; the tests above cover the rules. Rare: the state of
    # the first two is means of gradients, as AdamW's, which other tests resume.
    pytest.param(
        'optimizer = "adamw-bfloat16"', ["stage2.schedule=linear"], marks=pytest.mark.rare
    ),
    pytest.param(
        'optimizer = "adafactor"',
        ["stage2.schedule=wsd", "stage2.decay=1"],
        marks=pytest.mark.rare,
    ),
    pytest.param(
        'optimizer = "schedule-free"', ["stage1.ema=0", "stage2.ema=0"], marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("choice", "changes"), CHOICES)
def test_a_run_resumes_bit_for_bit(world, choice, changes, capsys):
    run = f"run{len(list(world.iterdir()))}"
    sets = [word for change in changes for word in ("--set", change)]
    assert train(world, run, choice, *sets) == 0
    ends = weights(world / run)
    norms = [float(optax.tree.norm(tree)) for tree in ends]
    assert norms[0] != norms[1]  # the average, moving or Schedule-Free's, is not the last weights
    for folder, name in (("checkpoints", "4"), ("manifests", "4.json")):
        (world / run / folder / name).rename(world / f"{run}-{name}")
    assert train(world, run, choice, *sets) == 0
    jax.tree.map(np.testing.assert_array_equal, weights(world / run), ends)
    assert train(world, run, choice, *sets, "--set", 'optimizer="adamw"') == 2
    was = recipe_in(world / run).optimizer
    assert f"optimizer was {was} and is now adamw; continue" in capsys.readouterr().err
