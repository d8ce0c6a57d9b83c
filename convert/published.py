"""Table of the published config files: names, defaults and supported values of each class."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """Config file of one class of diffusers or transformers.

    names: fields that name the class; `also` lists further values that a file may have.
    defaults: the class's values of fields that a file may omit.
    fixed: field -> (the class's default, the only value that our module computes).
    assumed: FLUX.1-dev's values of fields that our config lacks, for models without a published
        config (BFL's single files, models trained here).
    inside: field that holds this tower's config in a checkpoint of several towers.
    """

    names: dict[str, Any]
    defaults: dict[str, Any]
    fixed: dict[str, tuple[Any, Any]]
    assumed: dict[str, Any] = field(default_factory=dict)
    inside: str = ""
    also: tuple[str, ...] = ()


# Sources: diffusers 0.42 and transformers 5.23.
PUBLISHED: dict[str, Published] = {
    "transformer": Published(
        names={"_class_name": "FluxTransformer2DModel"},
        defaults={
            "num_layers": 19,
            "num_single_layers": 38,
            "in_channels": 64,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": False,
            "axes_dims_rope": (16, 56, 56),
        },
        fixed={"patch_size": (1, 1), "out_channels": (None, None)},
    ),
    "vae": Published(
        names={"_class_name": "AutoencoderKL"},
        defaults={
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": (64,),
            "layers_per_block": 1,
            "norm_num_groups": 32,
            "scaling_factor": 0.18215,
            "shift_factor": None,
        },
        fixed={
            "act_fn": ("silu", "silu"),
            "down_block_types": (["DownEncoderBlock2D"], ["DownEncoderBlock2D"]),
            "up_block_types": (["UpDecoderBlock2D"], ["UpDecoderBlock2D"]),
            "use_quant_conv": (True, False),
            "use_post_quant_conv": (True, False),
            "mid_block_add_attention": (True, True),
            "latents_mean": (None, None),
            "latents_std": (None, None),
        },
        assumed={"sample_size": 1024},  # pixels; the tile size of tiled decoding
    ),
    "t5": Published(
        names={"architectures": ["T5EncoderModel"], "model_type": "t5"},
        defaults={
            "vocab_size": 32128,
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 2048,
            "num_layers": 6,
            "num_heads": 8,
            "layer_norm_epsilon": 1e-6,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
        },
        fixed={"feed_forward_proj": ("relu", "gated-gelu")},
    ),
    "clip": Published(
        names={"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
        defaults={
            "vocab_size": 49408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "eos_token_id": 49407,
        },
        fixed={},
        assumed={"bos_token_id": 0, "pad_token_id": 1, "projection_dim": 768},
        inside="text_config",
        also=("clip",),
    ),
    "siglip": Published(
        names={"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model"},
        defaults={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 16,
            "layer_norm_eps": 1e-6,
        },
        fixed={"hidden_act": ("gelu_pytorch_tanh", "gelu_pytorch_tanh"), "num_channels": (3, 3)},
        inside="vision_config",
        also=("siglip",),
    ),
    "dinov2": Published(
        names={"architectures": ["Dinov2Model"], "model_type": "dinov2"},
        defaults={
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 14,
            "mlp_ratio": 4,
            "use_swiglu_ffn": False,
            "layer_norm_eps": 1e-6,
        },
        fixed={"hidden_act": ("gelu", "gelu"), "num_channels": (3, 3), "qkv_bias": (True, True)},
    ),
    "scheduler": Published(
        names={"_class_name": "FlowMatchEulerDiscreteScheduler"},
        defaults={
            "use_dynamic_shifting": False,
            "shift": 1.0,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
        },
        fixed={
            "num_train_timesteps": (1000, 1000),
            "time_shift_type": ("exponential", "exponential"),
            "shift_terminal": (None, None),
            **{
                f"use_{spacing}_sigmas": (False, False)
                for spacing in ("karras", "exponential", "beta")
            },
            "invert_sigmas": (False, False),
            "stochastic_sampling": (False, False),
        },
    ),
}

# Models that are mistaken for FLUX.1-dev, by class and by the channels of their input.
OTHER_CLASSES = {
    "SD3Transformer2DModel": "Stable Diffusion 3",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "FluxFillPipeline": "FLUX.1 Fill",
    "FluxControlPipeline": "FLUX.1 Depth or Canny",
    "FluxPriorReduxPipeline": "FLUX.1 Redux",
    "Flux2Transformer2DModel": "FLUX.2",
    "Flux2Pipeline": "FLUX.2",
}
OTHER_CHANNELS = {384: "FLUX.1 Fill", 128: "FLUX.1 Depth or Canny"}
OTHERWISE = "give FLUX.1-dev (or FLUX.1-schnell) instead"
