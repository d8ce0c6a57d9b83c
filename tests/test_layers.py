"""Layers on their own."""

import jax
import jax.numpy as jnp
import numpy as np

from ic_jax.models.layers import product
from tests.oracle import relative


def test_a_product_honours_the_default_precision_both_ways():
    rng = np.random.default_rng(0)
    x, kernel, out = (rng.standard_normal(s, np.float32) for s in ((2, 5, 8), (8, 3), (2, 5, 3)))

    def run(precision):
        with jax.default_matmul_precision(precision):
            y, back = jax.vjp(product, jnp.asarray(x), jnp.asarray(kernel))
            return y, *back(jnp.asarray(out))

    def rounded(a):
        return np.asarray(jnp.asarray(a, jnp.bfloat16), np.float32)

    rx, rk, ro = rounded(x), rounded(kernel), rounded(out)
    expected = rx @ rk, ro @ rk.T, np.einsum("abi,abo->io", rx, ro)
    exact = x @ kernel, out @ kernel.T, np.einsum("abi,abo->io", x, out)
    for ours, coarse, fine in zip(run("bfloat16"), expected, exact, strict=True):
        assert relative(ours, coarse) < 1e-6
        assert relative(ours, fine) > 1e-4
    for ours, fine in zip(run("highest"), exact, strict=True):
        assert relative(ours, fine) < 1e-6
