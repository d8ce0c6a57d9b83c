"""The attention backends against plain float64, at shapes that make them split their work."""

import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.models import attention as module
from ic_jax.models.attention import attention
from tests.oracle import relative


def exact(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("backend", ["xla", "blocked", None])
@pytest.mark.parametrize("block", [4096, 5])
def test_backends_agree(backend, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)  # 12 queries: in one block, or in three of four
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 3, 8), np.float32) for n in (12, 7, 7))
    ours = attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), backend)
    assert relative(ours, exact(q, k, v)) < 1e-6
