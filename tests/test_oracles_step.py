"""The training step against PyTorch and closed forms: loss, clipping, Adam, decay, average, rates.

No model is compiled: the loss of `train_step` is replaced by one whose gradient is known.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ic_jax.models.adapter import Adapter
from ic_jax.models.rope import Rope
from tests.conftest import GOLDENS
from tests.test_oracles_encode import EMPTY, batch, compiled_encode, scalars
from train import objective, step
from train.encode import Frozen
from train.objective import Examples
from train.optimizer import optimizer
from train.recipe import LoraConfig, Stage
from train.step import TrainState, apply_gradient
from train.step_settings import numbers

pytestmark = pytest.mark.usefixtures("optax_promotes")

SHAPES = {"bias": (3,), "kernel": (4, 3), "scale": (5,)}
RATE, DECAY, CLIP, EMA = 1e-2, 0.1, 0.5, 0.9
update = jax.jit(apply_gradient, static_argnames="optimizer")


def random(seed, norm=1.0):
    """Return arrays whose global norm is `norm`."""
    rng = np.random.default_rng(seed)
    tree = {k: rng.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}
    total = np.sqrt(sum(np.square(x).sum() for x in tree.values()))
    return {k: x * np.float32(norm / total) for k, x in tree.items()}


def test_clipping_adam_decay_and_average_equal_torch():
    """Steps clipped and not, so that Adam's division by the gradient's size hides no factor."""
    ours = random(0)
    theirs = {k: torch.nn.Parameter(torch.tensor(x)) for k, x in ours.items()}
    average = {k: p.detach().clone() for k, p in theirs.items()}
    mean = torch.optim.swa_utils.get_ema_avg_fn(EMA)
    adamw = torch.optim.AdamW(theirs.values(), RATE, betas=(0.8, 0.95), weight_decay=DECAY)
    rule = optimizer("adamw", Stage(steps=1, b1=0.8, b2=0.95, clip=CLIP, weight_decay=DECAY))
    state = TrainState.start(ours, rule, ema=True)
    for i, size in enumerate((2.0, 0.3, 0.6, 0.1)):
        gradient = random(i + 1, size)
        for name, p in theirs.items():
            p.grad = torch.tensor(gradient[name])
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), CLIP)
        adamw.step()
        average = {k: mean(average[k], p.detach(), i) for k, p in theirs.items()}
        value, rate, ema = (jnp.float32(x) for x in (1.0, RATE, EMA))
        state, our_norm = update(state, value, gradient, rate, ema, optimizer=rule)
        assert float(our_norm) == pytest.approx(size, rel=1e-5)
        assert float(norm) == pytest.approx(size, rel=1e-5)
        adam = state.opt_state[1]
        for name, p in theirs.items():
            moments = adamw.state[p]
            for a, b in (
                (state.params[name], p.detach()),
                (state.ema_params[name], average[name]),
                (adam.mu[name], moments["exp_avg"]),
                (adam.nu[name], moments["exp_avg_sq"]),
            ):
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def test_the_first_golden_step_clips_and_averages():
    """Adam's first moment holds PyTorch's clipped gradient; the average takes new parameters."""
    tensors = load_file(GOLDENS / "training.safetensors")
    start = "step/0/grad_after_clip/"
    names = [k.removeprefix(start) for k in tensors if k.startswith(start)]
    clipped, before = (
        np.concatenate([tensors[prefix + n].ravel() for n in names]) for prefix in (start, "")
    )
    norm = float(tensors["step/0/out/grad_norm"])
    assert norm > 1.05  # so that clipping to 1 shows
    rule = optimizer("adamw", Stage(steps=1, weight_decay=0.01, clip=1.0))
    state = TrainState.start({"all": before}, rule, ema=True)
    value, rate, ema = (jnp.float32(x) for x in (1.0, 1e-3, EMA))
    after, our_norm = update(state, value, {"all": clipped * norm}, rate, ema, optimizer=rule)
    assert float(our_norm) == pytest.approx(norm, rel=1e-4)
    np.testing.assert_allclose(after.opt_state[1].mu["all"], 0.1 * clipped, rtol=1e-3, atol=1e-9)
    moved = before * (1 - 1e-3 * 0.01) - 1e-3 * clipped / (np.abs(clipped) + 1e-8)
    np.testing.assert_allclose(after.params["all"], moved, rtol=1e-4, atol=1e-6)
    expected = EMA * before + (1 - EMA) * moved
    np.testing.assert_allclose(after.ema_params["all"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "adamw-bfloat16", "adafactor"])
def test_decay_shrinks_every_parameter_by_rate_times_decay(name):
    rule = optimizer(name, Stage(steps=1, weight_decay=DECAY))
    before = random(0)
    nothing = {k: np.zeros_like(x) for k, x in before.items()}
    state = TrainState.start(before, rule, ema=False)
    value, rate = jnp.float32(1), jnp.float32(RATE)
    after, _ = update(state, value, nothing, rate, jnp.float32(0), optimizer=rule)
    for key, x in before.items():
        np.testing.assert_allclose(after.params[key], x * (1 - RATE * DECAY), rtol=1e-6)
    assert Stage(steps=1).weight_decay == 0


def test_steps_that_are_not_finite_are_counted_in_a_row():
    rule, rate = optimizer("adamw", Stage(steps=1)), jnp.float32(RATE)
    state = TrainState.start(random(0), rule, ema=True)
    counts = []
    for value, factor in ((1, 1), (np.nan, 1), (1, np.inf), (np.inf, np.nan), (1, 1), (1, np.nan)):
        before, gradient = state, {k: x * np.float32(factor) for k, x in random(1).items()}
        state, _ = update(
            state, jnp.float32(value), gradient, rate, jnp.float32(EMA), optimizer=rule
        )
        moved = (state.params["bias"] != before.params["bias"]).all()
        assert moved == (value == factor == 1)
        counts.append(int(state.nonfinite_steps))
    assert counts == [0, 1, 2, 3, 0, 1]
    assert int(state.step) == 6
    assert np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state)])).all()


def known_loss(params, flux, examples, rope, remat):
    """Return loss, velocity w x and gradient of a model with one number, in closed form."""
    e, w = examples, params["w"]
    error = w * e.latents - (e.noise - e.latents)
    return (jnp.square(error).mean(), w * e.latents), {"w": 2 * (error * e.latents).mean()}


@pytest.mark.parametrize("parts", [1, 3])
def test_train_step_in_closed_form(monkeypatch, parts):
    """Two steps: the draws of each step, means over the batch, rows in order, parts alike."""
    monkeypatch.setattr(step, "gradient_of", known_loss)
    stage = Stage(steps=2, b1=0.5, b2=0.9, clip=1e9, weight_decay=0.2)
    rule, inputs, seed = optimizer("adamw", stage), batch(6, mean=0.3), jnp.int32(3)
    state = TrainState.start({"w": jnp.float32(0.7)}, rule, ema=True)
    frozen, values = Frozen(*[None] * 6), scalars(learning_rate=RATE, ema=EMA)
    table = Rope(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    static = {"timesteps": "logit-normal", "remat": "none", "dtype": jnp.float32}
    train_step = jax.jit(partial(step.train_step, optimizer=rule, accumulate=parts, **static))
    w, m, v, average = 0.7, 0.0, 0.0, 0.7
    for t in (1, 2):
        state, metrics = train_step(state, frozen, inputs, EMPTY, table, values, seed)
        e = compiled_encode(inputs, seed, jnp.int32(t - 1), values)
        x, noise = np.asarray(e.latents, np.float64), np.asarray(e.noise, np.float64)
        error = (1 + w) * x - noise
        g = 2 * (error * x).mean()
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g * g
        rows = np.square(error).mean((1, 2))
        np.testing.assert_allclose(metrics.loss, rows.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics.per_example_loss, rows, rtol=1e-5)
        np.testing.assert_allclose(metrics.sigma, e.sigma, rtol=1e-6)
        np.testing.assert_allclose(metrics.grad_norm, abs(g), rtol=1e-5)
        adam = (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        w = w - RATE * (adam + 0.2 * w)
        average = EMA * average + (1 - EMA) * w
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-5)


def some_examples(weight=None):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return Examples(
        latents=draw(2, 3, 4),
        noise=draw(2, 3, 4),
        sigma=jnp.float32([0.25, 0.9]),
        prompt_embeds=draw(2, 5, 4),
        pooled=draw(2, 4),
        features=None,
        subject_scale=jnp.float32([1.0, 0.0]),
        guidance=jnp.float32([1.0, 3.5]),
        weight=weight,
    )


class Watched:
    """A model that keeps its arguments and returns the noisy latents."""

    def __call__(self, noisy, prompt, pooled, t, guidance, rope, image_prompt, *, remat):
        self.arguments = (prompt, pooled, t, guidance, rope)
        self.image_prompt = image_prompt
        return noisy


def test_the_loss_is_the_published_flow_matching_loss(monkeypatch):
    monkeypatch.setattr(objective, "with_lora", lambda flux, lora: flux)
    weight = jnp.asarray(np.random.default_rng(1).random((2, 3, 4)), jnp.float32)
    for e in (some_examples(), some_examples(weight)):
        flux, rope = Watched(), object()
        value, velocity = objective.loss({}, flux, e, rope)
        expected = (e.prompt_embeds, e.pooled, e.sigma, e.guidance, rope)
        assert all(a is b for a, b in zip(flux.arguments, expected, strict=True))
        assert flux.image_prompt is None
        sigma = np.asarray(e.sigma)[:, None, None]
        noisy = (1 - sigma) * np.asarray(e.latents) + sigma * np.asarray(e.noise)
        np.testing.assert_allclose(velocity, noisy, rtol=1e-5, atol=1e-6)
        squares = np.square(noisy - (np.asarray(e.noise) - np.asarray(e.latents)))
        factor = 1 if e.weight is None else np.asarray(e.weight)
        np.testing.assert_allclose(value, (factor * squares).mean(), rtol=1e-5)


class WatchedAdapter(Adapter):
    """An adapter that returns what it is given."""

    def __init__(self):
        self.ip_adapter = "attention"

    @property
    def image_proj(self):
        return self

    def gather(self, features, *, remat):
        return features

    def resample(self, gathered, timestep, *, remat):
        assert gathered == "features"
        return timestep


def test_the_projector_sees_timesteps_to_1000_and_flux_the_subjects_scale():
    e, flux = some_examples()._replace(features="features"), Watched()
    objective.velocity(WatchedAdapter(), flux, e, object())
    attention, tokens, scale, *everywhere = flux.image_prompt
    assert attention == "attention"
    assert everywhere == [None, None]  # no region, and the same scale in all blocks
    np.testing.assert_allclose(tokens, [250, 900], rtol=1e-6)
    np.testing.assert_array_equal(scale, [1, 0])


PEAK = 1e-3
STAGE = Stage(
    steps=1000, learning_rate=PEAK, warmup=100, guidance=2.5, text_dropout=0.1, early_steps=20,
    early_text_dropout=0.8, subject_dropout=0.05, focus=0.3, ema=0.99,
)  # fmt: skip


@pytest.mark.parametrize(
    ("step_in_stage", "rate"),
    [(0, 1e-5), (1, 2e-5), (49, 5e-4), (98, 9.9e-4), (99, 1e-3), (100, 1e-3), (999, 1e-3)],
)
def test_rates_of_chosen_steps(step_in_stage, rate):
    values = numbers(STAGE, step_in_stage, 3.0)
    assert values["learning_rate"] == pytest.approx(rate, rel=1e-6, abs=1e-6 * PEAK)
    for warmup in (0, 1):
        at_once = dataclasses.replace(STAGE, warmup=warmup)
        assert numbers(at_once, step_in_stage, 3.0)["learning_rate"] == pytest.approx(1e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_rates_fall_to_their_floor(schedule):
    """The step after the last would have the floor; wsd begins to fall at the last fifth."""
    stage = dataclasses.replace(STAGE, schedule=schedule, floor=0.1, decay=0.2)
    first = 800 if schedule == "wsd" else 100
    for i in (0, 99, 100, 101, 450, 800, 801, 900, 999):
        share = max(0.0, (i - first) / (1000 - first))
        left = (1 + np.cos(np.pi * share)) / 2 if schedule == "cosine" else 1 - share
        rate = PEAK * min((i + 1) / 100, 0.1 + 0.9 * left)
        ours = numbers(stage, i, 3.0)["learning_rate"]
        assert ours == pytest.approx(rate, rel=1e-5, abs=1e-6 * PEAK), i


def test_numbers_of_a_stage():
    values = numbers(STAGE, 20, 3.0)
    expected = {"shift": 3.0, "guidance": 2.5, "text_dropout": 0.1, "subject_dropout": 0.05}
    for name, value in (expected | {"focus": 0.3}).items():
        assert values[name] == pytest.approx(value), name
    assert numbers(STAGE, 19, 3.0)["text_dropout"] == pytest.approx(0.8)
    assert numbers(STAGE, 0, 3.0)["ema"] == pytest.approx(0.1)  # (1 + n) / (10 + n)
    assert numbers(STAGE, 50, 3.0, averaged=39)["ema"] == pytest.approx(90 / 99)
    assert numbers(STAGE, 999, 3.0)["ema"] == pytest.approx(0.99)
    assert numbers(dataclasses.replace(STAGE, shifted=False), 0, 3.0)["shift"] == 1


def test_the_scale_of_a_lora_is_alpha_by_rank():
    assert LoraConfig(rank=8, alpha=2.0).scale == 0.25
    assert LoraConfig(rank=8).scale == 1.0
