"""Named sizes to measure at, from a toy for tests to the published model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ic_jax import flow
from ic_jax.auto_mesh import published_configs
from ic_jax.config import (
    AdapterConfig,
    ClipConfig,
    Dinov2Config,
    FluxConfig,
    SiglipConfig,
    T5Config,
    VaeConfig,
)
from ic_jax.weights.loading import COMPONENTS, read_config
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder


@dataclass(frozen=True)
class Size:
    """Configs of every component, and what is drawn and trained with them by default."""

    configs: Mapping[str, Any]
    side: int  # pixels of a drawn picture
    steps: int
    text_length: int  # T5 tokens
    training_side: int  # pixels of a training picture

    @property
    def pixels_per_token(self) -> int:
        """Pixels along one side of a token."""
        return flow.PATCH * self.configs["vae"].downscale


def size_of(name: str) -> Size:
    """Return a size of SIZES."""
    if name == "small":  # the model that comes with ic_jax
        folder = ModelFolder.open(SMALL_MODEL)
        configs = {k: read_config(folder, k) for k in COMPONENTS}
        drawn = read_config(folder, "sampling")
        side, steps, length = drawn.height, drawn.num_inference_steps, drawn.max_sequence_length
        return Size(configs, side, steps, text_length=length, training_side=side)
    return SIZES[name]


_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
_TOY: dict[str, Any] = {
    "transformer": FluxConfig(
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    ),
    "adapter": AdapterConfig(
        inner_dim=32,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        dim=16,
        depth=1,
        dim_head=8,
        heads=2,
        num_queries=8,
        output_dim=16,
        timestep_in_dim=16,
        siglip_layers=(0, 1, 2),
        dinov2_layers=(0, 1, 2),
    ),
    "siglip": SiglipConfig(**_VISION, intermediate_size=32, image_size=32),
    "dinov2": Dinov2Config(**_VISION, image_size=32),
    "t5": T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    "clip": ClipConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=63,
    ),
    "vae": VaeConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4),
}
_MID: dict[
    str, Any
] = {  # 69 million parameters in FLUX, with heads of the published size; the rest is toy
    **_TOY,
    "transformer": FluxConfig(
        num_layers=4,
        num_single_layers=8,
        num_attention_heads=4,
        attention_head_dim=128,
        joint_attention_dim=512,
        pooled_projection_dim=256,
        axes_dims_rope=(16, 56, 56),
    ),
    "adapter": replace(_TOY["adapter"], output_dim=512, num_queries=64),
    "t5": replace(_TOY["t5"], d_model=512),
    "clip": replace(_TOY["clip"], hidden_size=256),
}
SIZES: dict[str, Size] = {
    "flux-dev": Size(published_configs(), side=1024, steps=28, text_length=512, training_side=512),
    "mid": Size(_MID, side=512, steps=4, text_length=128, training_side=256),
    "toy": Size(_TOY, side=64, steps=2, text_length=8, training_side=32),
}
NAMES = ("flux-dev", "mid", "small", "toy")
