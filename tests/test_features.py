"""The features of a reference picture, against the published pipeline's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file as load_numpy

from ic_jax.config import CONFIGS, AdapterConfig
from ic_jax.models.features import SubjectFeatures, subject_features
from ic_jax.preprocessing.images import read_rgb, tiles, to_square
from ic_jax.weights.loading import load_component
from tests.conftest import TINY
from tests.oracle import relative


@pytest.fixture(scope="module")
def features(tiny_model) -> SubjectFeatures:
    """Return the features of two subjects: noise, and the reference picture."""
    siglip, dinov2 = (load_component(tiny_model, kind) for kind in ("siglip", "dinov2"))
    noise = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    pictures = (noise, read_rgb(TINY / "reference.png"))
    size = siglip.config.image_size
    low, high = zip(*(tiles(to_square(x, "stretch"), size) for x in pictures), strict=True)
    adapter = CONFIGS["instantcharacter"]  # the toy encoders are as deep as the real ones
    assert isinstance(adapter, AdapterConfig)
    compute = jax.jit(subject_features, static_argnames=("config", "dtype"))
    return compute(siglip, dinov2, adapter, jnp.asarray(low), jnp.asarray(high), dtype=jnp.float32)


@pytest.mark.parametrize("name", SubjectFeatures._fields)
def test_features_are_those_of_the_published_pipeline(features, name):
    expected = load_numpy(TINY / "expected.safetensors")[f"image/image_embeds_{name}"]
    assert relative(getattr(features, name)[1:], expected) <= 1e-5


def test_every_subject_gets_its_own_features(features):
    assert features.high_res_deep.shape[:2] == (2, 4 * 729)
    assert all(relative(x[0], x[1]) > 0.05 for x in features)
