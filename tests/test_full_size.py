"""The published sizes, without an array: counts, and every parameter's name, shape and axes."""

import diffusers
import pytest
import torch
import transformers

from ic_jax.config import CONFIGS
from tests import parameters


@pytest.mark.parametrize("name", parameters.MODELS)
def test_every_parameter_is_as_listed(name):
    written = (parameters.FOLDER / f"{name}.txt").read_text()
    assert parameters.listing(parameters.full_size(name)) == written


def test_published_counts():
    """SPEC's table: FLUX.1-dev 11 901 408 320, projector and attention of the adapter."""
    adapter = parameters.full_size("instantcharacter")
    assert parameters.count(parameters.full_size("flux-dev")) == 11_901_408_320
    assert parameters.count(adapter.image_proj) == 1_360_116_096
    assert parameters.count(adapter.ip_adapter) == 57 * 25_172_224


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
