"""Counted arithmetic against what is known of the published sizes and what XLA counts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ic_jax.config import CONFIGS, FLUX_DEV
from ic_jax.measuring import model_flops
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.projector import Projector
from tests.toy import CONFIGS as TOY
from train import flops


def test_flux_dev_at_1024():
    assert model_flops.flux_forward(FLUX_DEV, 4096, 512) == pytest.approx(74.4e12, rel=1e-3)


def test_the_adapter_adds_what_was_measured():
    """8.6 TFLOP a step at 1024 x 1024: 11.5% of FLUX's."""
    adapter = flops.adapter_forward(CONFIGS["instantcharacter"], FLUX_DEV, 4096, 729)
    assert adapter == pytest.approx(8.6e12, rel=0.02)


def test_the_projector_as_xla_counts_it():
    config = replace(TOY["adapter"], ff_mult=2)  # of the resampler, not of the stacks
    projector = nnx.eval_shape(lambda: Projector(config, rngs=nnx.Rngs(0)))
    n, e = 16, config.inner_dim
    features = SubjectFeatures(
        *(jax.ShapeDtypeStruct((1, k * n, e), jnp.float32) for k in (1, 3, 4))
    )

    def tokens(projector, features):
        return projector.resample(projector.gather(features), jnp.ones(1))

    counted = jax.jit(tokens).lower(projector, features).cost_analysis()["flops"]
    no_blocks = TOY["transformer"].__class__(
        **(TOY["transformer"].to_dict() | {"num_layers": 0, "num_single_layers": 0})
    )
    ours = flops.adapter_forward(config, no_blocks, 64, n)
    assert ours < counted < 1.6 * ours  # norms and softmax are not ours to count


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H200", 989e12), ("cpu", None)],
)
def test_peaks_by_device(kind, peak, monkeypatch):
    device = type("Device", (), {"device_kind": kind})()
    monkeypatch.setattr(jax, "devices", lambda: [device, device])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert flops.utilisation(1e12) == (None if peak is None else 1e12 / (2 * peak))
