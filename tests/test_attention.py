"""The attention backends against NumPy in float64, at sizes that make them split their work."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.models import attention as module
from ic_jax.models.attention import attention
from ic_jax.models.target import compiling_for
from tests.oracle import relative


def exact(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("backend", ["xla", "blocked", None])
@pytest.mark.parametrize("block", [4096, 4, 5])
def test_backends_agree(backend, block, monkeypatch):
    # Of 13 queries: one block, or a remainder of 1 or 3.
    monkeypatch.setattr(module, "CPU_BLOCK", block)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 3, 8), np.float32) for n in (13, 7, 7))
    ours = attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), backend)
    assert relative(ours, exact(q, k, v)) < 1e-6

    def gradients(backend):
        def loss(*qkv):
            return jnp.square(attention(*qkv, backend)).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    for mine, theirs in zip(gradients(backend), gradients("xla"), strict=True):
        assert relative(mine, theirs) < 1e-5


@pytest.mark.parametrize(("n", "m"), [(13, 13), (13, 39), (12, 7), (9, 8)])
def test_odd_numbers_of_tokens_are_padded_without_effect(n, m):
    """cuDNN has no gradient for them; its padding is JAX's, whichever implementation computes."""
    rng = np.random.default_rng(0)
    shapes = ((2, n, 3, 8), (2, m, 3, 8), (2, m, 3, 8))
    inputs = [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]
    padded = partial(module._fused, implementation="xla")
    plain = partial(attention, backend="xla")
    assert relative(padded(*inputs), exact(*inputs)) < 1e-6

    def gradient(function):
        return jax.grad(lambda *x: jnp.square(function(*x)).sum(), argnums=(0, 1, 2))(*inputs)

    for ours, expected in zip(gradient(padded), gradient(plain), strict=True):
        assert relative(ours, expected) < 1e-5


class Device:
    def __init__(self, capability):
        self.compute_capability = capability


HALF, FULL = jnp.bfloat16, jnp.float32


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "tokens", "head_dim", "backend"),
    [
        ("cpu", "", HALF, 4608, 128, "blocked"),
        ("gpu", "9.0", HALF, 4608, 128, "cudnn"),
        ("gpu", "8.0", HALF, 729, 72, "cudnn"),  # SigLIP so400m's heads
        ("gpu", "10.0", HALF, 729, 64, "cudnn"),
        ("gpu", "9.0", HALF, 64, 12, "xla"),  # not a multiple of 8
        ("gpu", "9.0", FULL, 4608, 128, "xla"),
        ("gpu", "7.5", HALF, 4608, 128, "xla"),  # Turing
        ("gpu", "gfx942", HALF, 4608, 128, "xla"),  # AMD
        ("gpu", "9.0", HALF, 16384, 512, "xla"),  # the VAE at 1024 x 1024
        ("gpu", "9.0", HALF, 65536, 512, "blocked"),  # the VAE at 2048 x 2048
        ("tpu", "", HALF, 4608, 128, "splash"),
        ("tpu", "", HALF, 729, 128, "xla"),  # few keys
        ("tpu", "", HALF, 4608, 72, "xla"),
    ],
)
def test_default_backend(platform, capability, dtype, tokens, head_dim, backend):
    q = jax.ShapeDtypeStruct((1, tokens, 1 if head_dim == 512 else 24, head_dim), dtype)
    with compiling_for(platform, Device(capability)):
        assert module._default_backend(q, q) == backend
