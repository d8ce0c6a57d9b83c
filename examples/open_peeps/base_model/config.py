"""Configuration of the base model: sizes of its parts and lengths of their training."""

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

# Odds of the five crops of a reference: the whole, and its four tiles, the upper two first.
EVEN_ODDS = (0.5, 0.125, 0.125, 0.125, 0.125)


@dataclass(frozen=True)
class BaseModelConfig:
    """Sizes of the parts, and lengths of their training."""

    world: str = "small"  # a key of examples.open_peeps.world.worlds.WORLDS
    seed: int = 0
    pictures: int = 12000  # rendered once, for VAE and FLUX
    head_share: float = 0.0  # share of the VAE's and FLUX's loss on head and face
    side: int = 64  # pixels
    text_length: int = 16  # T5 tokens; the small world's longest caption has 13 with the end token
    text_width: int = 128  # of both text encoders
    train_text: bool = False  # whether the text encoders are trained with FLUX
    vae_widths: tuple[int, ...] = (12, 24, 48, 64)  # four levels: 8 x 8 pixels a latent, as FLUX
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
    # Sampling defaults of the model.
    sampling_steps: int = 20
    true_cfg: float = 1.0  # above 1, two model calls per step
    subject_scale: float = 2.0  # the least of 1, 2, 3, 4 that scored as well as the best
    encoder_width: int = 64  # of each of the two image encoders
    encoder_layers: int = 3
    encoder_patch: int = 16  # pixels
    subjects: int = 8000  # cut-out references, rendered once, for the image encoders
    siglip_crop_odds: tuple[float, ...] = EVEN_ODDS  # odds of the crops that SigLIP is trained on
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
            # Not distilled: there is no guidance to embed, only true classifier-free guidance.
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
            negative_subject_scale=0.0,  # guidance strengthens the subject, too
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


SMALL = BaseModelConfig()
PEEPS = BaseModelConfig(
    world="peeps",
    pictures=60000,
    head_share=0.6,
    side=96,
    text_length=36,  # 99 of 100 captions fit
    train_text=True,
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
    subject_scale=1.0,  # as in training: guidance strengthens it
    encoder_width=96,
    encoder_layers=4,
    subjects=20000,
    siglip_crop_odds=(0.5, 0.25, 0.25, 0.0, 0.0),  # captions describe heads: the upper tiles
    siglip_steps=4000,
    dinov2_steps=1200,
)


def change(config: BaseModelConfig, changes: Sequence[str]) -> BaseModelConfig:
    """Return the config with changes such as "vae_steps=100"; ConfigError for an unknown name."""
    values = asdict(config)
    known = [name for name in values if name != "world"]  # set by --world
    for text in changes:
        name, value = parse_change(text, "vae_steps=100")
        refuse_unknown([name], known, "--set ")
        values[name] = value
    return dataclass_from_dict(BaseModelConfig, values)
