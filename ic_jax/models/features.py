"""Subject features: the outputs of two image encoders for a picture and its four tiles."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from ic_jax.config import AdapterConfig
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.siglip import SiglipVision

# (mean, std) per channel of pixels in 0..1, as in the training of each encoder.
SIGLIP_SCALE = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET_SCALE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class SubjectFeatures(NamedTuple):
    """Input of the projector: n tokens per picture (729), e channels (2688), SigLIP's first."""

    low_res_deep: Float[Array, "b n e"]
    low_res_shallow: Float[Array, "b 3*n e"]  # three layers, concatenated
    high_res_deep: Float[Array, "b 4*n e"]  # four tiles, concatenated


def subject_features(
    siglip: SiglipVision,
    dinov2: Dinov2,
    config: AdapterConfig,
    low: UInt8[Array, "b s s 3"],
    high: UInt8[Array, "b 4 s s 3"],
    dtype: DTypeLike,
) -> SubjectFeatures:
    """Encode pictures as InstantCharacter does; `config` and `dtype` are static under jit.

    Args:
        siglip: the vision tower of SigLIP.
        dinov2: DINOv2 with the same patch grid.
        config: numbers of the hidden states that are used.
        low: the pictures (`ic_jax.preprocessing.images.tiles`).
        high: four tiles of each picture.
        dtype: dtype of the computation; pixels are normalised in float32.
    """
    count, s = low.shape[:2]
    # One batch of five pictures per subject, so that each encoder is compiled and run once.
    pixels = jnp.concatenate([low[:, None], high], axis=1).reshape(5 * count, s, s, 3)
    last_a, hidden_a = siglip(normalize(pixels, *SIGLIP_SCALE, dtype), config.siglip_layers)
    last_b, hidden_b = dinov2(normalize(pixels, *IMAGENET_SCALE, dtype), config.dinov2_layers)

    def join(a: Float[Array, "b5 n da"], b: Float[Array, "b5 n+1 db"]) -> Float[Array, "b 5 n e"]:
        x = jnp.concatenate([a, b[:, 1:]], axis=-1)  # without DINOv2's CLS token
        return x.reshape(-1, 5, *x.shape[1:])

    deep = join(last_a, last_b)
    shallow = [join(*pair)[:, 0] for pair in zip(hidden_a, hidden_b, strict=True)]
    return SubjectFeatures(
        low_res_deep=deep[:, 0],
        low_res_shallow=jnp.concatenate(shallow, axis=1),
        high_res_deep=deep[:, 1:].reshape(count, -1, deep.shape[-1]),
    )


def normalize(
    pixels: UInt8[Array, "b h w 3"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: DTypeLike,
) -> Float[Array, "b h w 3"]:
    """Return (pixels / 255 - mean) / std, computed in float32: the input of an encoder."""
    x = pixels.astype(jnp.float32) / 255
    shift, scale = (jnp.array(y, jnp.float32)[None, None, None] for y in (mean, std))  # 1 1 1 3
    return ((x - shift) / scale).astype(dtype)
