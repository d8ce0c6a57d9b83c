"""Gradient noise scale: the estimate on gradients of known noise, and from the parts of a batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from train import step
from train.noise_scale import GradientNoise, gradient_noise, noise_scale
from train.objective import Examples

SIZE, SPREAD, BATCH, PARTS = 200, 0.5, 32, 8


def square(x):
    return float(np.square(x).sum())


def sample_gradients(seed):
    rng = np.random.default_rng(seed)
    return TRUE + SPREAD * rng.standard_normal((BATCH, SIZE))


TRUE = np.random.default_rng(0).standard_normal(SIZE) / 10


def estimate(seed):
    parts = sample_gradients(seed).reshape(BATCH // PARTS, PARTS, SIZE).mean(0)
    of_parts = np.mean([square(part) for part in parts])
    sizes = {"part": BATCH // PARTS, "batch": BATCH}
    return gradient_noise(of_parts, square(parts.mean(0)), **sizes)


def test_means_over_steps_are_the_true_variance_and_gradient():
    values = noise_scale([None, *(estimate(seed) for seed in range(1, 400))])
    assert values["gradient variance"] == pytest.approx(SIZE * SPREAD**2, rel=0.01)
    assert values["gradient square"] == pytest.approx(square(TRUE), rel=0.05)
    scale = SIZE * SPREAD**2 / square(TRUE)
    assert values["gradient noise scale"] == pytest.approx(scale, rel=0.05)


def test_nothing_is_reported_where_it_cannot_be_had():
    assert noise_scale([None, None]) == {}
    values = noise_scale([GradientNoise(np.float32(1.0), np.float32(-0.1))])
    assert set(values) == {"gradient variance", "gradient square"}


@pytest.mark.parametrize("parts", [1, 4])
def test_the_parts_of_a_batch_give_their_mean_square(monkeypatch, parts):
    """A loss whose gradient in each row is the row itself."""
    rows = jnp.asarray(np.random.default_rng(1).standard_normal((8, 1, 5)), jnp.float32)
    params = jnp.zeros(5)

    def gradient_of(params, flux, examples, rope, *, remat):
        return (jnp.zeros(()), examples.latents), examples.latents.mean((0, 1))

    def examples(rows):
        none = dict.fromkeys(Examples._fields)
        values = {"latents": rows, "noise": rows, "sigma": rows[:, 0, 0]}
        return Examples(**none | values)

    monkeypatch.setattr(step, "gradient_of", gradient_of)
    result = step.mean_gradient(params, None, None, examples, rows, parts)
    np.testing.assert_allclose(result.gradient, rows.mean((0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(result.sigma, rows[:, 0, 0])
    if parts == 1:
        assert result.part_square is None
        return
    of_parts = [square(rows[part::parts].mean((0, 1))) for part in range(parts)]
    np.testing.assert_allclose(result.part_square, np.mean(of_parts), rtol=1e-5)
