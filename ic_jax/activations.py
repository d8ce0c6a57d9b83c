"""Activations of drawing, in closed form: the least that is in memory at a time beside weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ic_jax.config import AdapterConfig, FluxConfig
from ic_jax.flow import PATCH
from ic_jax.models.target import platform

# Numbers of each token in a block, in widths of the transformer: the block's input, the same
# normed, queries, keys, values, and four of the MLP. Compiled programs hold 9.7 to 10.5 on
# accelerators (benchmarks/plans.json). No backend stores the scores of attention, but a CPU those
# of a few hundred queries.
BLOCK_WIDTHS = 9


@dataclass(frozen=True)
class Drawing:
    """Sizes of pictures that are drawn together."""

    height: int  # pixels
    width: int
    steps: int
    text_length: int  # T5 tokens
    pictures: int = 1
    subjects: int = 0  # pictures of subjects
    true_cfg: bool = False  # every step has a negative prediction as well


def drawing_bytes(configs: Mapping[str, Any], drawing: Drawing, itemsize: int) -> int:
    """Return the bytes that drawing takes at least, on all devices together.

    Sampling and decoding follow each other, so the larger one counts. The tokens of a reference
    picture and the encoders' activations are not counted.

    Args:
        configs: of the transformer, the VAE and, with subjects, the adapter, by component.
        drawing: sizes of the pictures.
        itemsize: bytes of a number in the dtype computed in.
    """
    return itemsize * max(sampling_numbers(configs, drawing), decoding_numbers(configs, drawing))


def sampling_numbers(configs: Mapping[str, Any], drawing: Drawing) -> int:
    """Count what is kept for all steps, and what a block of the transformer holds."""
    flux, pixels = configs["transformer"], PATCH * configs["vae"].downscale
    tokens = drawing.height * drawing.width // pixels**2 + drawing.text_length
    block = BLOCK_WIDTHS * _rows(drawing) * tokens * flux.hidden_size
    return kept_numbers(flux, configs.get("adapter"), drawing) + block


def kept_numbers(flux: FluxConfig, adapter: AdapterConfig | None, drawing: Drawing) -> int:
    """Count what `sampler.prepare` keeps of every step: modulation and tokens of subjects."""
    modulated = 12 * flux.num_layers + 3 * flux.num_single_layers + 2
    tokens = 0 if adapter is None else adapter.num_queries * adapter.output_dim
    modulation = _rows(drawing) * modulated * flux.hidden_size
    return drawing.steps * (drawing.subjects * tokens + modulation)


def decoding_numbers(configs: Mapping[str, Any], drawing: Drawing) -> int:
    """Count what the VAE's last upsampled block holds at full size while it convolves first.

    That is its input, which a shortcut adds later, the same normed, which a TPU may compute within
    the convolution, and the convolution's result.
    """
    widths = configs["vae"].block_out_channels
    last, before = widths[0], widths[min(1, len(widths) - 1)]
    normed = 0 if platform() == "tpu" else before
    return drawing.pictures * drawing.height * drawing.width * (before + normed + last)


def _rows(drawing: Drawing) -> int:
    return drawing.pictures * (2 if drawing.true_cfg else 1)
