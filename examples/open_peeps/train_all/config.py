"""Sizes of the larger small model, and the share of the time that each stage has."""

from dataclasses import dataclass, field, replace

from examples.open_peeps.base_model.config import BaseModelConfig
from examples.open_peeps.world import draw
from ic_jax.config import AdapterConfig, Dinov2Config, SiglipConfig


@dataclass(frozen=True)
class Stage:
    """Training of one part."""

    share: float  # of the seconds in all
    batch: int
    rate: float
    # First and last scene of each person that is used, plus one. Scene 0 shows the reference's own
    # view, so these are the paper's unpaired, paired and mixed data.
    scenes: tuple[int, int] = (0, draw.SCENES)
    text_dropout: float = 0.0  # share of empty prompts, of the adapter's training


ADAPTER_STAGES = ("adapter1", "adapter2", "adapter3")
# The stages, in order. What the shares leave is for the start, encoding and what follows training.
STAGES = {
    "vae": Stage(0.20, 128, 2e-3),
    "dinov2": Stage(0.04, 512, 1e-3),
    "siglip": Stage(0.08, 512, 1e-3),
    "base": Stage(0.33, 512, 1e-3),
    "adapter1": Stage(0.06, 256, 3e-4, (0, 1), text_dropout=1.0),
    "adapter2": Stage(0.10, 256, 3e-4, (1, draw.SCENES), text_dropout=0.1),
    "adapter3": Stage(0.05, 256, 3e-4, text_dropout=0.1),
}
TRAINING = sum(stage.share for stage in STAGES.values())


@dataclass(frozen=True)
class SmallModelConfig(BaseModelConfig):
    """Sizes of a small model with its adapter, and its training within a time."""

    encoder_side: int = 128  # pixels of each crop of a reference
    adapter_width: int = 192  # of the resampler
    adapter_heads: int = 4
    subject_tokens: int = 16
    chunks: int = 1000  # of people, drawn at most (examples.open_peeps.world.draw)
    first_chunks: int = 8  # drawn before training starts
    least_chunks: int = 250  # that stages after the autoencoder wait for
    dtype: str = "bfloat16"  # of the computation
    stages: dict[str, Stage] = field(default_factory=lambda: STAGES)
    validation: int = 40  # people of each kind on whom the sampling settings are chosen
    triples: int = 100  # people of each kind of the evaluation
    seeds: tuple[int, ...] = (0,)

    @property
    def siglip(self) -> SiglipConfig:
        return replace(super().siglip, image_size=self.encoder_side)

    @property
    def dinov2(self) -> Dinov2Config:
        return replace(super().dinov2, image_size=self.encoder_side)

    @property
    def adapter(self) -> AdapterConfig:
        inner, width, heads = 2 * self.encoder_width, self.adapter_width, self.adapter_heads
        layers = tuple(range(self.encoder_layers - 1))
        return AdapterConfig(
            inner_dim=inner,
            num_attention_heads=heads,
            attention_head_dim=inner // heads,
            num_layers=1,
            dim=width,
            depth=2,
            dim_head=width // heads,
            heads=heads,
            num_queries=self.subject_tokens,
            output_dim=width,
            timestep_in_dim=64,
            siglip_layers=layers,
            dinov2_layers=layers,
        )


LARGE = SmallModelConfig(
    world="peeps",
    head_share=0.6,
    side=192,  # 24 x 24 latents of 16 channels, 144 tokens
    text_length=80,  # captions of two people are long
    text_width=160,
    train_text=True,
    vae_widths=(16, 32, 72, 128),
    vae_crop=96,
    width=224,
    heads=4,
    double_blocks=2,
    single_blocks=4,
    sampling_steps=12,
    true_cfg=2.0,
    subject_scale=1.0,
    encoder_width=128,
    encoder_layers=4,
    siglip_crop_odds=(0.5, 0.25, 0.25, 0.0, 0.0),
)
TOY = replace(
    LARGE,
    side=32,
    text_width=32,
    vae_widths=(4, 8),
    vae_crop=32,
    width=32,
    heads=2,
    double_blocks=1,
    single_blocks=1,
    sampling_steps=2,
    encoder_side=16,
    encoder_patch=8,
    encoder_width=16,
    encoder_layers=2,
    adapter_width=32,
    adapter_heads=2,
    subject_tokens=4,
    chunks=4,
    first_chunks=1,
    least_chunks=2,
    dtype="float32",
    stages={name: replace(stage, batch=16) for name, stage in STAGES.items()},
    validation=2,
    triples=2,
)
