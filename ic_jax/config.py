"""Configs of all models: frozen dataclasses, and the published sizes by name.

Field names are those of the published config files (of diffusers and transformers; for the
adapter, the arguments of the published code). Configs hold the architecture only: no dtype, random
key or mesh.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ic_jax.base_config import Config, Range
from ic_jax.from_dict import ConfigError as ConfigError
from ic_jax.from_dict import shown

Blocks = Annotated[int, Range(1, 1000)]
FluxBlocks = Annotated[int, Range(0, 1000)]  # there are models without one kind
Layer = Annotated[int, Range(0, 1000)]  # of an encoder, after so many blocks
Epsilon = Annotated[float, Range(0, 1)]
LogShift = Annotated[float, Range(-14, 14)]  # the shift is its exponential
Rgb = Annotated[int, Range(3, 3)]  # channels of a picture


# transformers' names; the last three are one function.
CLIP_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")


@dataclass(frozen=True)
class FluxConfig(Config):
    """FLUX transformer (diffusers FluxTransformer2DModel)."""

    num_layers: FluxBlocks  # double blocks
    num_single_layers: FluxBlocks
    num_attention_heads: int
    attention_head_dim: int
    joint_attention_dim: int  # width of the T5 embeddings
    pooled_projection_dim: int  # width of CLIP's pooled embedding
    axes_dims_rope: tuple[int, ...]
    in_channels: int = 64  # a packed latent: 2 x 2 pixels of the VAE's channels
    guidance_embeds: bool = True
    rope_theta: ClassVar[float] = 10000.0
    mlp_ratio: ClassVar[int] = 4
    time_channels: ClassVar[int] = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            sum(self.axes_dims_rope) == self.attention_head_dim,
            f"axes_dims_rope {self.axes_dims_rope} do not add up to the head size "
            f"{self.attention_head_dim}",
        )
        self._check(
            all(d % 2 == 0 for d in self.axes_dims_rope),
            f"axes_dims_rope {self.axes_dims_rope} must be even",
        )

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class AdapterConfig(Config):
    """InstantCharacter adapter: sizes of the projector, and the encoder layers that it reads.

    The sizes of the image-prompt attention follow from FLUX's config and `output_dim`.
    """

    inner_dim: int  # width E of the cross stacks: SigLIP's plus DINOv2's
    num_attention_heads: int
    attention_head_dim: int
    num_layers: Blocks  # blocks in each of the two cross stacks
    dim: int  # width of the resampler
    depth: Blocks  # layers of the resampler
    dim_head: int
    heads: int
    num_queries: int  # subject tokens
    output_dim: int  # width of a subject token
    timestep_in_dim: int
    cross_attention_dim: int | None = None  # inner_dim
    embedding_dim: int | None = None  # inner_dim
    ff_mult: int = 4  # of the resampler's feed-forwards; those of the cross stacks are 4
    timestep_flip_sin_to_cos: bool = True
    timestep_freq_shift: Annotated[int, Range(0, 0)] = 0
    siglip_layers: tuple[Layer, ...] = (7, 13, 26)
    dinov2_layers: tuple[Layer, ...] = (9, 19, 29)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cross_attention_dim", "embedding_dim"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.inner_dim)
            self._check(
                getattr(self, name) == self.inner_dim,
                f"{name} {getattr(self, name)} differs from inner_dim {self.inner_dim}",
            )
        self._check(
            self.num_attention_heads * self.attention_head_dim == self.inner_dim,
            f"{self.num_attention_heads} heads of {self.attention_head_dim} do not make up "
            f"inner_dim {self.inner_dim}",
        )
        self._check(
            self.timestep_flip_sin_to_cos and self.timestep_freq_shift == 0,
            "only timestep_flip_sin_to_cos true and timestep_freq_shift 0, as published",
        )
        self._check(
            len(self.siglip_layers) == len(self.dinov2_layers),
            f"siglip_layers {self.siglip_layers} and dinov2_layers {self.dinov2_layers} "
            "must pair up",
        )


@dataclass(frozen=True)
class SiglipConfig(Config):
    """SigLIP vision tower (transformers SiglipVisionModel)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: Blocks
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: Epsilon = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_heads(self.hidden_size, self.num_attention_heads)
        self._check_patches(self.image_size, self.patch_size)


@dataclass(frozen=True)
class Dinov2Config(Config):
    """DINOv2 vision transformer (transformers Dinov2Model)."""

    hidden_size: int
    num_hidden_layers: Blocks
    num_attention_heads: int
    image_size: int  # pixels; the size of the position table
    patch_size: int
    mlp_ratio: int = 4
    use_swiglu_ffn: bool = False
    layer_norm_eps: Epsilon = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_heads(self.hidden_size, self.num_attention_heads)
        self._check_patches(self.image_size, self.patch_size)


@dataclass(frozen=True)
class T5Config(Config):
    """T5 v1.1 encoder (transformers T5EncoderModel): gated GELU, no biases."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: Blocks
    num_heads: int
    relative_attention_num_buckets: Annotated[int, Range(4, 2**24)] = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: Epsilon = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        self._check(
            distance > buckets // 4,
            f"relative_attention_max_distance {distance} must be above a quarter of "
            f"relative_attention_num_buckets {buckets}",
        )


@dataclass(frozen=True)
class ClipConfig(Config):
    """CLIP text transformer (transformers CLIPTextModel)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: Blocks
    num_attention_heads: int
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    eos_token_id: Annotated[int, Range(0, 2**24)] = (
        2  # 2 means the largest id, as in CLIP's first configs
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_heads(self.hidden_size, self.num_attention_heads)
        self._check(
            self.hidden_act in CLIP_ACTIVATIONS,
            f"hidden_act {shown(self.hidden_act)} is none of {', '.join(CLIP_ACTIVATIONS)}",
        )


@dataclass(frozen=True)
class VaeConfig(Config):
    """FLUX's autoencoder (diffusers AutoencoderKL without quantisation convolutions)."""

    block_out_channels: tuple[int, ...]
    latent_channels: int = 16
    layers_per_block: Blocks = 2
    norm_num_groups: int = 32
    in_channels: Rgb = 3
    out_channels: Rgb = 3
    scaling_factor: Annotated[float, Range(1e-6, 1e6)] = 0.3611
    shift_factor: float = 0.1159

    def __post_init__(self) -> None:
        super().__post_init__()
        for channels in self.block_out_channels:
            self._check(
                channels % self.norm_num_groups == 0,
                f"{channels} channels do not divide into {self.norm_num_groups} groups",
            )

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """Flow-matching schedule (diffusers FlowMatchEulerDiscreteScheduler)."""

    use_dynamic_shifting: bool = True
    shift: Annotated[float, Range(1e-6, 1e6)] = 3.0  # without dynamic shifting
    base_shift: LogShift = 0.5
    max_shift: LogShift = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            self.base_image_seq_len != self.max_image_seq_len,
            f"base_image_seq_len and max_image_seq_len are both {self.max_image_seq_len}",
        )


@dataclass(frozen=True)
class SamplingConfig(Config):
    """Default sampling settings of a model; here, those published for InstantCharacter."""

    height: int = 1024  # pixels
    width: int = 1024
    num_inference_steps: int = 28
    guidance_scale: float = 3.5
    true_cfg_scale: float = 1.0
    subject_scale: float = 0.9
    negative_subject_scale: float | None = None  # None is subject_scale
    max_sequence_length: int = 512  # T5 tokens


FLUX_DEV = FluxConfig(
    num_layers=19,
    num_single_layers=38,
    num_attention_heads=24,
    attention_head_dim=128,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    axes_dims_rope=(16, 56, 56),
)

CONFIGS: dict[str, Config] = {
    "flux-dev": FLUX_DEV,
    "flux-schnell": FluxConfig(**(FLUX_DEV.to_dict() | {"guidance_embeds": False})),
    "instantcharacter": AdapterConfig(
        inner_dim=2688,
        num_attention_heads=42,
        attention_head_dim=64,
        num_layers=4,
        dim=1280,
        depth=4,
        dim_head=64,
        heads=20,
        num_queries=1024,
        output_dim=4096,
        timestep_in_dim=320,
    ),
    "siglip-so400m-384": SiglipConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ),
    "dinov2-giant": Dinov2Config(
        hidden_size=1536,
        num_hidden_layers=40,
        num_attention_heads=24,
        image_size=518,
        patch_size=14,
        use_swiglu_ffn=True,
    ),
    "t5-xxl": T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
    ),
    "clip-l": ClipConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    ),
    "flux-vae": VaeConfig(block_out_channels=(128, 256, 512, 512)),
}
