"""The eps of every norm against the published libraries, by inputs of tiny variance.

At a variance of 1 an eps of 1e-6 and one of 1e-5 give the same to five digits; at 1e-6 the results
differ by a factor of two.
"""

from functools import partial

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers.models.embeddings import apply_rotary_emb, get_timestep_embedding
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_flux import FluxPosEmbed, FluxTransformerBlock
from flax import nnx

from ic_jax.config import CONFIGS, FLUX_DEV
from ic_jax.flow import position_ids
from ic_jax.models import layers
from ic_jax.models.flux import modulate
from ic_jax.models.image_prompt import RootMeanSquareNorm
from ic_jax.models.rope import Rope, normalize_and_rotate, rope_table, rotate
from ic_jax.models.target import compiling_for
from ic_jax.models.vae import GroupNorm
from ic_jax.weights.loading import abstract

TINY = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32) * np.float32(1e-3)
# Published classes at the published settings, on the meta device.
PUBLISHED = {
    "t5-xxl": ("t5", lambda c: transformers.T5EncoderModel(transformers.T5Config(**c))),
    "clip-l": ("clip", lambda c: transformers.CLIPTextModel(transformers.CLIPTextConfig(**c))),
    "siglip-so400m-384": (
        "siglip",
        lambda c: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**c)),
    ),
    "dinov2-giant": ("dinov2", lambda c: transformers.Dinov2Model(transformers.Dinov2Config(**c))),
    "flux-dev": ("transformer", lambda c: diffusers.FluxTransformer2DModel(**c)),
}
# What the publishers' config.json say where they depart from the library's defaults.
SAID = {"t5-xxl": {"feed_forward_proj": "gated-gelu"}}
EPS = {"t5-xxl": 1e-6, "clip-l": 1e-5, "siglip-so400m-384": 1e-6, "dinov2-giant": 1e-6}
EPS |= {"flux-dev": 1e-6}


def eps_of(module):
    return getattr(module, "eps", getattr(module, "variance_epsilon", None))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_norm_has_the_published_eps(name):
    component, make = PUBLISHED[name]
    sizes = {k: v for k, v in CONFIGS[name].to_dict().items() if "eps" not in k}
    sizes |= {k: 2 for k in sizes if k in ("num_layers", "num_single_layers", "num_hidden_layers")}
    with torch.device("meta"):
        theirs = {n: m for n, m in make(sizes | SAID.get(name, {})).named_modules() if eps_of(m)}
    ours = {
        ".".join(map(str, path)).replace("*", "1"): module.eps
        for path, module in nnx.iter_modules(abstract(component, CONFIGS[name]))
        if isinstance(module, layers.LayerNorm | layers.RMSNorm)
    }
    assert ours
    for path, eps in ours.items():  # transformers 5 leaves the towers out
        published = theirs.get(path) or theirs[path.partition(".")[2]]
        assert eps == eps_of(published) == EPS[name], path


def close(ours, theirs):
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_norms_divide_as_torch_does(eps):
    x = torch.from_numpy(TINY)
    with torch.no_grad():
        layer_norm, rms_norm = torch.nn.LayerNorm(8, eps), torch.nn.RMSNorm(8, eps)
        for norm, theirs in ((layers.LayerNorm, layer_norm), (layers.RMSNorm, rms_norm)):
            weight = torch.linspace(0.5, 2, 8)
            theirs.weight.copy_(weight)
            ours = norm(8, eps=eps)
            ours.weight.set_value(jnp.asarray(weight.numpy()))
            close(ours(jnp.asarray(TINY)), theirs(x))
    if eps == 1e-6:
        other = (layer_norm(x) - torch.nn.LayerNorm(8, 1e-5)(x)).abs().max()
        assert float(other.detach()) > 0.5  # such inputs show it


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_flux_norms_divide_as_those_of_diffusers(platform):
    """Compare the modulated norms and those of queries, in the forms of each platform."""
    adaptive = AdaLayerNormZeroSingle(8)
    final = AdaLayerNormContinuous(8, 8, elementwise_affine=False, eps=1e-6)
    block = FluxTransformerBlock(8, 1, 8)
    x = torch.from_numpy(TINY)
    shift, scale = (np.random.default_rng(i).standard_normal((2, 8)) for i in (1, 2))
    shift, scale = (np.float32(v) for v in (shift, scale))
    with compiling_for(platform), torch.no_grad():
        ours = jax.jit(modulate)(jnp.asarray(TINY), shift, scale)
        for norm in (adaptive.norm, final.norm, block.norm1.norm, block.norm2):
            theirs = norm(x) * (1 + torch.from_numpy(scale)[:, None])
            close(ours, theirs + torch.from_numpy(shift)[:, None])
        queries = layers.RMSNorm(8, eps=block.attn.norm_q.eps)
        heads = jnp.asarray(TINY)[:, None]  # b h n d
        still = Rope(jnp.ones((6, 4)), jnp.zeros((6, 4)))
        if platform == "tpu":
            still = Rope(jnp.ones((6, 8)), jnp.zeros((6, 8)))
        rotated = jax.jit(lambda x: normalize_and_rotate([(x, queries)], still))(heads)
        close(rotated[:, 0], block.attn.norm_q(x))


def test_the_image_prompts_eps_is_outside_the_root():
    """The published norm: x / (rms + 1e-6); shared/goldens has it at a variance of 1."""
    for size in (1e-6, 1e-5, 1.0):
        x = TINY.astype(np.float64) * 1e3 * size
        rms = np.sqrt(np.square(x).mean(-1, keepdims=True))
        close(RootMeanSquareNorm(8)(jnp.asarray(x, jnp.float32)), x / (rms + 1e-6))


def test_the_vaes_groups_are_normalised_as_torch_does():
    x = TINY.reshape(1, 3, 4, 8)
    theirs = diffusers.AutoencoderKL(norm_num_groups=4, block_out_channels=(8,))
    assert theirs.encoder.conv_norm_out.eps == 1e-6
    with torch.no_grad():
        expected = theirs.encoder.conv_norm_out(torch.from_numpy(x).permute(0, 3, 1, 2))
    close(GroupNorm(8, 4)(jnp.asarray(x)), expected.permute(0, 2, 3, 1))


def test_the_projectors_norms():
    """SPEC.md: 1e-6 in the two stacks, 1e-5 in the resampler."""
    adapter = abstract("adapter", CONFIGS["instantcharacter"], FLUX_DEV)
    eps = {
        ".".join(map(str, path)): module.eps
        for path, module in nnx.iter_modules(adapter)
        if isinstance(module, layers.LayerNorm | RootMeanSquareNorm)
    }
    assert len(eps) > 10
    for path, value in eps.items():
        assert value == (1e-5 if "resampler" in path else 1e-6), path


ACTIVATIONS = {
    layers.gelu_tanh: partial(torch.nn.functional.gelu, approximate="tanh"),
    layers.gelu_erf: torch.nn.functional.gelu,
    layers.quick_gelu: transformers.activations.QuickGELUActivation(),
}


@pytest.mark.parametrize("ours", ACTIVATIONS, ids=lambda f: f.__name__)
def test_activations(ours):
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = ACTIVATIONS[ours](torch.from_numpy(x))
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    other = ACTIVATIONS[layers.gelu_erf if ours is layers.gelu_tanh else layers.gelu_tanh]
    assert float((expected - other(torch.from_numpy(x))).abs().max()) > 1e-4


def test_sinusoids_are_those_of_diffusers():
    t = np.float32([0, 0.5, 437.5, 999, 1000])
    theirs = get_timestep_embedding(
        torch.from_numpy(t), 32, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    np.testing.assert_allclose(layers.sinusoid(jnp.asarray(t), 32), theirs, atol=1e-4)


def test_rotary_tables_and_rotation_are_those_of_diffusers():
    ids = position_ids(3, 4, 5)
    theirs = FluxPosEmbed(theta=10000, axes_dim=list(FLUX_DEV.axes_dims_rope))(
        torch.from_numpy(ids).float()
    )
    table = rope_table(ids, FLUX_DEV)
    for ours, published in zip(table, theirs, strict=True):
        np.testing.assert_allclose(np.repeat(ours, 2, axis=-1), published, atol=1e-6)
    x = np.random.default_rng(0).standard_normal((1, 2, len(ids), 128)).astype(np.float32)
    expected = apply_rotary_emb(torch.from_numpy(x), theirs)
    close(jax.jit(rotate)(jnp.asarray(x), Rope(*map(jnp.asarray, table))), expected)
