"""The published sizes, without an array: counts, and every parameter's name, shape and axes."""

import dataclasses
import functools

import diffusers
import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from flax import nnx

from ic_jax import auto_mesh, sampler
from ic_jax.config import CONFIGS, FLUX_DEV
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.projector import Projector
from ic_jax.models.rope import Rope
from ic_jax.weights import loading
from tests import parameters


@pytest.mark.parametrize("name", parameters.MODELS)
def test_every_parameter_is_as_listed(name):
    written = (parameters.FOLDER / f"{name}.txt").read_text()
    assert parameters.listing(parameters.full_size(name)) == written
    component = next((k for k, config in auto_mesh.PUBLISHED.items() if config == name), None)
    if component is not None:  # what loading fills is made without random numbers
        shapes = loading.abstract(component, CONFIGS[name], FLUX_DEV)
        assert parameters.listing(shapes) == written


def test_published_counts():
    """SPEC's table: FLUX.1-dev 11 901 408 320, projector and attention of the adapter."""
    adapter = parameters.full_size("instantcharacter")
    assert parameters.count(parameters.full_size("flux-dev")) == 11_901_408_320
    assert parameters.count(adapter.image_proj) == 1_360_116_096
    assert parameters.count(adapter.ip_adapter) == 57 * 25_172_224


def test_ff_mult_is_the_resamplers_alone():
    """The published cross stacks are built without it: their feed-forwards are 4 wide."""
    config = dataclasses.replace(CONFIGS["instantcharacter"], ff_mult=2)
    projector = nnx.eval_shape(lambda: Projector(config, rngs=nnx.Rngs(0)))
    for blocks in (projector.cross_layer_blocks, projector.cross_scale_blocks):
        shapes = {k: v.shape for k, v in loading.parameters(blocks).items()}
        assert shapes["*.ff.net.0.proj.kernel"] == (4, 2688, 2 * 4 * 2688)
        assert shapes["*.ff.net.2.kernel"] == (4, 4 * 2688, 2688)
    shapes = {k: v.shape for k, v in loading.parameters(projector.resampler.layers).items()}
    assert shapes["*.1.1.kernel"] == (4, 1280, 2 * 1280)
    assert shapes["*.1.3.kernel"] == (4, 2 * 1280, 1280)


def torch_model(name):
    config = CONFIGS[name].to_dict()
    match name:
        case "flux-schnell":
            return diffusers.FluxTransformer2DModel(**config)
        case "siglip-so400m-384":
            return transformers.SiglipVisionModel(
                transformers.SiglipVisionConfig(**config, vision_use_head=False)
            )
        case "dinov2-giant":
            return transformers.Dinov2Model(
                transformers.Dinov2Config(**config, use_mask_token=False)
            )
        case "t5-xxl":
            return transformers.T5EncoderModel(
                transformers.T5Config(**config, feed_forward_proj="gated-gelu")
            )
        case "clip-l":
            return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
        case "flux-vae":
            blocks = len(config["block_out_channels"])
            return diffusers.AutoencoderKL(
                **config,
                down_block_types=["DownEncoderBlock2D"] * blocks,
                up_block_types=["UpDecoderBlock2D"] * blocks,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )


@pytest.mark.parametrize(
    "name", [n for n in parameters.MODELS if n not in ("flux-dev", "instantcharacter")]
)
def test_counts_as_torch_has_them(name):
    with torch.device("meta"):
        theirs = sum(p.numel() for p in torch_model(name).parameters())
    assert parameters.count(parameters.full_size(name)) == theirs


def test_sampling_at_full_size():
    """1024 x 1024, 28 steps, one subject, true guidance: traced whole, in bfloat16."""

    def shaped(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    def half(model):
        return jax.tree.map(lambda x: shaped(*x.shape), model)

    def number(*shape):
        return shaped(*shape, dtype=jnp.float32)

    prompt = sampler.TextEmbeddings(shaped(1, 512, 4096), shaped(1, 768))
    features = SubjectFeatures(*(shaped(1, n * 729, 2688) for n in (1, 3, 4)))
    request = sampler.SamplingRequest(
        latents=number(1, 4096, 64),
        prompt=prompt,
        guidance_scale=number(1),
        sigmas=number(29),
        rope=Rope(number(4608, 64), number(4608, 64)),
        subject=sampler.Subject(features, number(1)),
        true_cfg=sampler.TrueCfg(prompt, number(1), number(1)),
    )
    flux, adapter = (half(parameters.full_size(n)) for n in ("flux-dev", "instantcharacter"))
    conditioning = jax.eval_shape(sampler.prepare, flux, adapter, request)
    assert conditioning.steps.subject_tokens.shape == (28, 1, 1024, 4096)
    assert conditioning.steps.subject_tokens.dtype == jnp.bfloat16
    assert conditioning.steps.modulation.img.shape == (28, 19, 2, 6, 3072)
    latents = jax.eval_shape(sampler.sample, flux, adapter, request)
    assert latents.shape == (1, 4096, 64)
    assert latents.dtype == jnp.float32


def test_preparing_makes_no_copy_of_the_weights():
    """Modulation by one product over all blocks would copy 6.5 GB of transposed kernels."""
    flux = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), parameters.full_size("flux-dev")
    )
    number = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    arguments = (number((28,)), number((1,)), number((1, 768)))
    memory = jax.jit(sampler._modulation).lower(flux, *arguments).compile().memory_analysis()
    outputs = 28 * (2 * 19 * 6 + 38 * 3 + 2) * 3072 * 4
    assert memory.output_size_in_bytes == pytest.approx(outputs, rel=1e-3)
    assert memory.temp_size_in_bytes < 1e9
