"""SigLIP and DINOv2 against transformers, on random weights at toy sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from ic_jax.config import CONFIGS, Dinov2Config, SiglipConfig
from ic_jax.models import bicubic
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.siglip import SiglipVision
from tests.oracle import cast, converted, randomize, relative

SIGLIP = [
    SiglipConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=62,  # the last 6 pixels fall outside the grid, as at the published size
        patch_size=14,
    ),
    SiglipConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-2,  # large enough to show
    ),
]
# With the (height, width) of the picture: positions shrunk, enlarged and not square, unchanged.
DINOV2 = [
    (
        Dinov2Config(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=98,
            patch_size=14,
            use_swiglu_ffn=True,
        ),
        (76, 76),
    ),
    (
        Dinov2Config(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=24,
            patch_size=8,
            mlp_ratio=3,
            layer_norm_eps=1e-2,
        ),
        (35, 48),
    ),
    (
        Dinov2Config(
            hidden_size=20,  # a SwiGLU width that is rounded up
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            use_swiglu_ffn=True,
        ),
        (32, 32),
    ),
]
LAYERS = (0, 1, 2)


def siglip(config: SiglipConfig) -> tuple[torch.nn.Module, SiglipVision]:
    sizes = transformers.SiglipVisionConfig(**config.to_dict())
    oracle = randomize(transformers.SiglipVisionModel(sizes))
    return oracle, converted(oracle)


def dinov2(config: Dinov2Config) -> tuple[torch.nn.Module, Dinov2]:
    oracle = randomize(transformers.Dinov2Model(transformers.Dinov2Config(**config.to_dict())))
    return oracle, converted(oracle)


CASES = [(siglip, c, (c.image_size, c.image_size)) for c in SIGLIP]
CASES += [(dinov2, c, size) for c, size in DINOV2]


def picture(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def torch_states(oracle: torch.nn.Module, pixels: np.ndarray) -> list[np.ndarray]:
    """Return the last hidden state, then the hidden states numbered LAYERS."""
    dtype = next(oracle.parameters()).dtype
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).to(dtype)
    with torch.no_grad():
        out = oracle(x, output_hidden_states=True)
    states = [out.last_hidden_state, *(out.hidden_states[i] for i in LAYERS)]
    return [state.float().numpy() for state in states]


@jax.jit
def our_states(model, pixels):
    last, states = model(pixels, LAYERS)
    return [last, *states]


@pytest.mark.parametrize(("make", "config", "size"), CASES)
def test_hidden_states_are_those_of_transformers(make, config, size):
    oracle, model = make(config)
    pixels = picture(size)
    expected = torch_states(oracle, pixels)
    for ours, theirs in zip(our_states(model, jnp.asarray(pixels)), expected, strict=True):
        assert ours.dtype == jnp.float32
        assert relative(ours, theirs) <= 1e-5


@pytest.mark.parametrize(("make", "config", "size"), [CASES[0], CASES[2]])
def test_bfloat16_is_no_worse_than_that_of_torch(make, config, size):
    oracle, model = make(config)
    pixels = picture(size)
    exact = torch_states(oracle, pixels)
    theirs = torch_states(oracle.to(torch.bfloat16), pixels)
    ours = our_states(cast(model, jnp.bfloat16), jnp.asarray(pixels, jnp.bfloat16))
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        assert relative(a, truth) <= 1.5 * relative(b, truth)


def test_float32_parameters_compute_in_the_dtype_of_bfloat16_pixels():
    for make, config, size in (CASES[0], CASES[2]):
        _, model = make(config)
        pixels = jnp.asarray(picture(size), jnp.bfloat16)
        last, states = jax.eval_shape(lambda m, x: m(x, (1,)), model, pixels)
        assert last.dtype == states[0].dtype == jnp.bfloat16


def test_only_the_requested_states_are_returned_in_the_requested_order():
    _, model = siglip(SIGLIP[0])

    @jax.jit
    def run(pixels):
        return model(pixels, (0, 2, 3))[1], model(pixels, (3, 2, 0)), model(pixels)

    ascending, (last, descending), (last_alone, none) = run(jnp.asarray(picture((62, 62))))
    assert none == ()
    np.testing.assert_array_equal(last, last_alone)
    np.testing.assert_array_equal(jnp.stack(ascending), jnp.stack(descending[::-1]))


@pytest.mark.parametrize("layers", [(4,), (0, -1)])
def test_a_hidden_state_that_does_not_exist_is_named(layers):
    _, model = siglip(SIGLIP[0])
    with pytest.raises(ValueError, match=r"asked of an encoder that has 0 to 3"):
        model(jnp.asarray(picture((62, 62))), layers)


@pytest.mark.parametrize(("size", "new"), [(37, 27), (5, 8), (4, 4), (3, 1), (1, 3)])
def test_bicubic_weights_are_those_of_torch(size, new):
    table = np.random.default_rng(1).normal(size=(size, size, 2)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(table).permute(2, 0, 1)[None],
        size=(new, new),
        mode="bicubic",
        align_corners=False,
    )[0].permute(1, 2, 0)
    assert relative(bicubic.resize(jnp.asarray(table), new, new), expected) <= 2e-6


@pytest.mark.parametrize(
    ("make", "name", "oracle", "sizes", "tokens"),
    [
        (
            SiglipVision,
            "siglip-so400m-384",
            transformers.SiglipVisionModel,
            transformers.SiglipVisionConfig,
            729,
        ),
        (Dinov2, "dinov2-giant", transformers.Dinov2Model, transformers.Dinov2Config, 730),
    ],
)
def test_the_published_sizes_have_as_many_parameters(make, name, oracle, sizes, tokens):
    config = CONFIGS[name]
    model = nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        theirs = dict(oracle(sizes(**config.to_dict())).named_parameters())
    unused = [n for n in theirs if n.startswith("head.") or n.endswith("mask_token")]
    expected = sum(p.numel() for n, p in theirs.items() if n not in unused)
    assert sum(x.size for x in jax.tree.leaves(model)) == expected

    pixels = jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.bfloat16)
    last, states = jax.eval_shape(lambda m, x: m(x, (7, 13, 26)), model, pixels)
    assert last.shape == states[2].shape == (1, tokens, config.hidden_size)
