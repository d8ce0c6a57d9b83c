"""Check that the parts of a model fit each other, from configs and tokenizers alone.

Each part is complete in itself, and JAX does not say where an index is out of range: it takes the
last row. So what one part gives another is compared before a weight is read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ic_jax import flow
from ic_jax.untrusted_files import parse_json
from ic_jax.weights.tensors import WeightsError

ENCODERS = {"tokenizer": "clip", "tokenizer_2": "t5"}  # by the component of their tokenizer
NAMES = {
    "transformer": "FLUX",
    "adapter": "the adapter",
    "siglip": "SigLIP",
    "dinov2": "DINOv2",
    "t5": "T5",
    "clip": "CLIP",
    "vae": "the VAE",
}


@dataclass(frozen=True)
class Width:
    """A width that some parts give and another one takes, as functions of their configs."""

    givers: tuple[str, ...]
    gives: Callable[..., int]
    taker: str
    takes: Callable[[Any], int]


WIDTHS = (
    Width(("t5",), lambda t5: t5.d_model, "transformer", lambda flux: flux.joint_attention_dim),
    Width(
        ("clip",),
        lambda clip: clip.hidden_size,
        "transformer",
        lambda flux: flux.pooled_projection_dim,
    ),
    Width(
        ("vae",),
        lambda vae: vae.latent_channels * flow.PATCH**2,
        "transformer",
        lambda flux: flux.in_channels,
    ),
    Width(
        ("siglip", "dinov2"),
        lambda siglip, dinov2: siglip.hidden_size + dinov2.hidden_size,
        "adapter",
        lambda adapter: adapter.inner_dim,
    ),
)


def check_fit(configs: Mapping[str, Any], tokenizers: Mapping[str, bytes]) -> None:
    """Check the parts that a model has.

    Args:
        configs: of components by name.
        tokenizers: contents of tokenizer.json by "tokenizer" and "tokenizer_2".

    Raises:
        WeightsError: names two parts that do not fit, with both numbers.
    """
    for misfit in misfits(configs):
        raise WeightsError(f"{misfit}; take both from the same publisher")
    for name, content in tokenizers.items():
        encoder = ENCODERS[name]
        largest = largest_id(content)
        if encoder in configs and largest is not None and largest >= configs[encoder].vocab_size:
            raise WeightsError(
                f"{name} has ids up to {largest}, and {NAMES[encoder]} knows "
                f"{configs[encoder].vocab_size} words; give the tokenizer of this encoder"
            )


def misfits(configs: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not fit between the parts of a model, with both numbers.

    Args:
        configs: of components by name.
    """
    for width in WIDTHS:
        if {*width.givers, width.taker} <= configs.keys():
            gives = width.gives(*(configs[name] for name in width.givers))
            takes = width.takes(configs[width.taker])
            if gives != takes:
                givers = " and ".join(NAMES[name] for name in width.givers)
                yield f"{gives} channels come from {givers}, and {NAMES[width.taker]} takes {takes}"
    for name in ("siglip", "dinov2"):
        if {name, "adapter"} <= configs.keys():
            deepest = max(getattr(configs["adapter"], f"{name}_layers"))
            if deepest > (depth := configs[name].num_hidden_layers):
                yield f"the adapter reads layer {deepest} of {NAMES[name]}, which has {depth}"


def largest_id(content: bytes) -> int | None:
    """Return the largest id of a tokenizer.json; None if it is damaged, which loading it says."""
    try:
        values = parse_json(content, "tokenizer.json")
        vocab = values["model"]["vocab"]
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        return max([*ids, *(token["id"] for token in values.get("added_tokens") or ())])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
