"""Sizes and lengths of the small foundations, all of them settings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ic_jax.config import (
    ClipConfig,
    ConfigError,
    Dinov2Config,
    FluxConfig,
    SamplingConfig,
    SiglipConfig,
    T5Config,
    VaeConfig,
)
from ic_jax.from_dict import dataclass_from_dict, parse_change, refuse_unknown

EVENLY = (0.5, 0.125, 0.125, 0.125, 0.125)  # as much of a reference as of its four tiles


@dataclass(frozen=True)
class Settings:
    """What is trained, and for how long."""

    world: str = "small"  # of examples.open_peeps.world.worlds
    seed: int = 0
    pictures: int = 12000  # drawn once
    head_share: float = 0.0  # of the VAE's and FLUX's loss, for head and face alone
    side: int = 64  # pixels
    text_length: int = 16  # T5 tokens; the small world's longest caption has 12 words and the end
    text_width: int = 128  # of both text encoders
    text_learnt: bool = False  # the text encoders are trained with FLUX
    vae_widths: tuple[int, ...] = (12, 24, 48, 64)  # pixels / 8, as FLUX's
    vae_crop: int = 64  # pixels
    vae_steps: int = 2400
    vae_batch: int = 8
    vae_rate: float = 2e-3
    kl_weight: float = 1e-3
    width: int = 160  # of FLUX
    heads: int = 5
    double_blocks: int = 2
    single_blocks: int = 4
    base_steps: int = 4000
    base_batch: int = 32
    base_rate: float = 1e-3
    sampling_steps: int = 20  # that the model is drawn with
    true_cfg: float = 1.0  # likewise; beyond 1 every step is drawn twice
    subject_scale: float = 2.0  # likewise; of 1, 2, 3, 4 the least that is as good as the best
    encoder_width: int = 64  # of each of the two image encoders
    encoder_layers: int = 3
    encoder_patch: int = 16  # pixels
    subjects: int = 8000  # cut-out pictures, drawn once
    # Odds of the whole reference and its four tiles, the upper left and right ones first.
    siglip_shown: tuple[float, ...] = EVENLY
    siglip_steps: int = 1500
    dinov2_steps: int = 1500
    encoder_batch: int = 128
    encoder_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name, divisor in (("width", "heads"), ("side", "encoder_patch")):
            if getattr(self, name) % getattr(self, divisor):
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be a multiple of {divisor}, "
                    f"{getattr(self, divisor)}"
                )
        if self.vae_crop > self.side:
            raise ConfigError(f"vae_crop is {self.vae_crop}; it must be at most side, {self.side}")

    @property
    def vae(self) -> VaeConfig:
        return VaeConfig(block_out_channels=self.vae_widths, layers_per_block=1, norm_num_groups=4)

    @property
    def flux(self) -> FluxConfig:
        head = self.width // self.heads
        spatial = head * 3 // 8 // 2 * 2
        return FluxConfig(
            num_layers=self.double_blocks,
            num_single_layers=self.single_blocks,
            num_attention_heads=self.heads,
            attention_head_dim=head,
            joint_attention_dim=self.text_width,
            pooled_projection_dim=self.text_width,
            axes_dims_rope=(head - 2 * spatial, spatial, spatial),
            # Nothing here is distilled: one model, and true guidance for whoever wants it.
            guidance_embeds=False,
        )

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            height=self.side,
            width=self.side,
            num_inference_steps=self.sampling_steps,
            true_cfg_scale=self.true_cfg,
            subject_scale=self.subject_scale,
            negative_subject_scale=0.0,  # guidance is towards the subject, too
            max_sequence_length=self.text_length,
        )

    def t5(self, words: int) -> T5Config:
        d = self.text_width
        return T5Config(words, d_model=d, d_kv=d // 4, d_ff=2 * d, num_layers=1, num_heads=4)

    def clip(self, words: int) -> ClipConfig:
        d = self.text_width
        return ClipConfig(words, d, 2 * d, num_hidden_layers=1, num_attention_heads=4)

    @property
    def siglip(self) -> SiglipConfig:
        d, layers = self.encoder_width, self.encoder_layers
        return SiglipConfig(
            d, 4 * d, layers, 4, image_size=self.side, patch_size=self.encoder_patch
        )

    @property
    def dinov2(self) -> Dinov2Config:
        d, layers = self.encoder_width, self.encoder_layers
        return Dinov2Config(
            d, layers, 4, image_size=self.side, patch_size=self.encoder_patch, mlp_ratio=4
        )


SMALL = Settings()
PEEPS = Settings(
    world="peeps",
    pictures=60000,
    head_share=0.6,
    side=96,
    text_length=36,  # 99 of 100 captions fit
    text_learnt=True,
    vae_widths=(8, 24, 64, 96),
    vae_steps=2800,
    vae_batch=16,
    width=192,
    heads=3,
    double_blocks=2,
    single_blocks=4,
    base_steps=14000,
    sampling_steps=12,  # as good as 20
    true_cfg=2.0,
    subject_scale=1.0,  # which training has: guidance strengthens it
    encoder_width=96,
    encoder_layers=4,
    subjects=20000,
    siglip_shown=(0.5, 0.25, 0.25, 0.0, 0.0),  # captions say who it is, which heads show
    siglip_steps=4000,
    dinov2_steps=1200,
)


def change(settings: Settings, changes: Sequence[str]) -> Settings:
    """Settings with changes such as "vae_steps=100"; ConfigError for what there is not."""
    values = asdict(settings)
    known = [name for name in values if name != "world"]  # which --world chooses
    for text in changes:
        name, value = parse_change(text, "vae_steps=100")
        refuse_unknown([name], known, "--set ")
        values[name] = value
    return dataclass_from_dict(Settings, values)
