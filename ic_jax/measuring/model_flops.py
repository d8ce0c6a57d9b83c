"""Model FLOPs: the multiplications and additions of FLUX and the adapter, by their configs.

They do not depend on how a program computes, so that times of different programs compare. Norms,
softmax, the modulation and whatever is computed twice are left out.
"""

from ic_jax.config import AdapterConfig, FluxConfig
from ic_jax.models.projector import CROSS_FF_MULT


def flux_forward(config: FluxConfig, image_tokens: int, text_tokens: int) -> float:
    """Return the FLOPs of the transformer for one sample; 74.4e12 for FLUX.1-dev at 1024 x 1024."""
    d, n = config.hidden_size, image_tokens + text_tokens
    return _blocks(config) * (24.0 * d * d * n + attend(n, n, d))


def projector_forward(config: AdapterConfig, features: int) -> float:
    """Return the FLOPs of the projector for one subject with `features` deep tokens (729)."""
    e, m = config.inner_dim, config.num_queries
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
    return stacks + projected + resampler


def image_prompt_forward(config: AdapterConfig, flux: FluxConfig, image_tokens: int) -> float:
    """Return the FLOPs of the image-prompt attention for one subject, in all blocks.

    `image_tokens` are those of all pictures of the subject.
    """
    d, m = flux.hidden_size, config.num_queries
    return _blocks(flux) * (4.0 * m * config.output_dim * d + attend(image_tokens, m, d))


def attend(rows: int, context: int, width: int) -> float:
    """Return the FLOPs of attention over `width` channels, of all heads."""
    return 4.0 * rows * context * width


def _blocks(config: FluxConfig) -> int:
    return config.num_layers + config.num_single_layers
