"""Model FLOP utilisation: the arithmetic of a sample as a share of the peak of the devices.

Multiplications and additions of FLUX and the adapter are counted. Left out are the frozen encoders,
a LoRA (a hundredth of the maps beside it) and what is recomputed to save memory, so that the
figure is comparable.
"""

import jax

from ic_jax.config import AdapterConfig, FluxConfig, SiglipConfig
from ic_jax.devices import Chip
from ic_jax.models.projector import CROSS_FF_MULT


def flux_forward(config: FluxConfig, image_tokens: int, text_tokens: int) -> float:
    """Return the FLOPs of the transformer for one sample; 74.4e12 for FLUX.1-dev at 1024 x 1024."""
    d, n = config.hidden_size, image_tokens + text_tokens
    blocks = config.num_layers + config.num_single_layers
    return blocks * (24.0 * d * d * n + 4.0 * n * n * d)


def adapter_forward(
    config: AdapterConfig, flux: FluxConfig, image_tokens: int, features: int
) -> float:
    """Return the FLOPs of the adapter for one sample with `features` deep tokens (729)."""
    e, d, m = config.inner_dim, flux.hidden_size, config.num_queries

    def attend(rows: int, context: int, width: int) -> float:
        return 4.0 * rows * context * width

    stacks = 0.0
    for context in (len(config.siglip_layers) * features, 4 * features):
        maps = (6.0 + 3.0 * CROSS_FF_MULT) * features + 2.0 * context  # e x e matrices by rows
        both = attend(features, features, e) + attend(features, context, e)
        stacks += config.num_layers * (2.0 * e * e * maps + both) + 8.0 * features * e * e
    projected = 8.0 * features * e * e
    tokens, inner = 2 * features, config.heads * config.dim_head
    layer = 2.0 * config.dim * (2 * m * inner + 2 * inner * (tokens + m))
    layer += attend(m, tokens + m, inner) + 4.0 * config.ff_mult * m * config.dim**2
    resampler = config.depth * layer + 2.0 * config.dim * (tokens * e + m * config.output_dim)
    blocks = flux.num_layers + flux.num_single_layers
    prompt = blocks * (4.0 * m * config.output_dim * d + attend(image_tokens, m, d))
    return stacks + projected + resampler + prompt


def training_sample(
    flux: FluxConfig,
    image_tokens: int,
    text_tokens: int,
    adapter: AdapterConfig | None,
    siglip: SiglipConfig | None,
) -> float:
    """Return the FLOPs of one training sample, forward and backward.

    The frozen base has no gradients of its weights. A LoRA has neither adapter nor image encoder.
    """
    count = 2.0 * flux_forward(flux, image_tokens, text_tokens)
    if adapter is not None and siglip is not None:
        features = (siglip.image_size // siglip.patch_size) ** 2
        count += 3.0 * adapter_forward(adapter, flux, image_tokens, features)
    return count


def utilisation(flops_per_second: float) -> float | None:
    """Return the share of the devices' peak; None for devices whose peak is not known."""
    chip = Chip.of(jax.devices()[0])
    return flops_per_second / (chip.flops * jax.device_count()) if chip else None
