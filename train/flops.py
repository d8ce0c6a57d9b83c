"""Model FLOP utilisation: the arithmetic of a sample as a share of the peak of the devices.

Left out are the frozen encoders, a LoRA (a hundredth of the maps beside it) and what is recomputed
to save memory, so that the figure is comparable.
"""

import jax

from ic_jax.config import AdapterConfig, FluxConfig, SiglipConfig
from ic_jax.devices import Chip
from ic_jax.measuring.model_flops import flux_forward, image_prompt_forward, projector_forward


def adapter_forward(
    config: AdapterConfig, flux: FluxConfig, image_tokens: int, features: int
) -> float:
    """Return the FLOPs of the adapter for one sample with `features` deep tokens (729)."""
    prompt = image_prompt_forward(config, flux, image_tokens)
    return projector_forward(config, features) + prompt


def training_sample(
    flux: FluxConfig,
    image_tokens: int,
    text_tokens: int,
    adapter: AdapterConfig | None,
    siglip: SiglipConfig | None,
    subjects: int = 1,
) -> float:
    """Return the FLOPs of one training sample with a number of subjects, forward and backward.

    The frozen base has no gradients of its weights. A LoRA has neither adapter nor image encoder.
    """
    count = 2.0 * flux_forward(flux, image_tokens, text_tokens)
    if adapter is not None and siglip is not None:
        features = (siglip.image_size // siglip.patch_size) ** 2
        count += 3.0 * subjects * adapter_forward(adapter, flux, image_tokens, features)
    return count


def utilisation(flops_per_second: float) -> float | None:
    """Return the share of the devices' peak; None for devices whose peak is not known."""
    chip = Chip.of(jax.devices()[0])
    return flops_per_second / (chip.flops * jax.device_count()) if chip else None
