"""Flow matching as FLUX uses it: noise schedule, packed latents and position ids.

All of it depends only on a picture's shape and the number of steps. The schedule and the ids are
NumPy arrays, computed outside of compiled programs; packing is JAX.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from ic_jax.config import SchedulerConfig

PATCH = 2  # latent pixels along one side of a token


def schedule(
    steps: int | Sequence[float], image_tokens: int, config: SchedulerConfig
) -> np.ndarray:
    """Return the noise levels of a sampling run, float32 [steps + 1], from 1 (pure noise) to 0.

    Args:
        steps: number n of steps, for the levels 1, (n-1)/n, ... 1/n before shifting; or these
            levels, falling within (0, 1], as diffusers' `sigmas` argument takes them.
        image_tokens: number of packed image tokens, on which dynamic shifting depends.
        config: the model's schedule (diffusers FlowMatchEulerDiscreteScheduler).
    """
    levels = np.linspace(1.0, 1.0 / steps, steps) if isinstance(steps, int) else np.array(steps)
    factor = shift(image_tokens, config)
    levels = factor / (factor + 1.0 / levels - 1.0)
    return np.append(levels, 0.0).astype(np.float32)


def first_step(steps: int, strength: float) -> int:
    """Return the step from which a picture is drawn over, rounded as diffusers rounds it.

    Args:
        steps: of the whole schedule.
        strength: share of the steps to take, within (0, 1].
    """
    return min(int(steps - min(steps * strength, steps)), steps - 1)


def add_noise(
    latents: Float[Array, "b n c"], noise: Float[Array, "b n c"], sigma: Float[Array, ""]
) -> Float[Array, "b n c"]:
    """Return latents at the noise level sigma: sigma * noise + (1 - sigma) * latents."""
    return sigma * noise + (1 - sigma) * latents


def shift(image_tokens: int, config: SchedulerConfig) -> float:
    """Return the factor that shifts a level s towards noise: s' = shift / (shift + 1 / s - 1).

    Dynamic shifting keeps larger pictures noisy for longer: the factor is e^mu, with mu linear in
    the number of image tokens.
    """
    if not config.use_dynamic_shifting:
        return config.shift
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    return math.exp(config.base_shift + slope * (image_tokens - config.base_image_seq_len))


def pack(latents: Float[Array, "b h w c"]) -> Float[Array, "b n p"]:
    """Pack 2 x 2 latent pixels into a token, ordered by channel, then row, then column."""
    b, h, w, c = latents.shape
    x = latents.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, -1, c * PATCH * PATCH)


def unpack(tokens: Float[Array, "b n p"], height: int, width: int) -> Float[Array, "b h w c"]:
    """Undo `pack`, for latents of the given height and width."""
    b = tokens.shape[0]
    x = tokens.reshape(b, height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, height, width, -1)


def position_ids(
    text_tokens: int, height: int, width: int, reference: tuple[int, int] | None = None
) -> np.ndarray:
    """Return position ids, int [n, 3], of text tokens, then the picture's, then a reference's.

    All text tokens are at (0, 0, 0), and the picture's at (0, row, column). Those of a reference
    are at (1, row, column), rows and columns of its own (FLUX.1 Kontext).

    Args:
        text_tokens: number of text tokens.
        height: of the picture, in tokens; likewise `width`.
        width: see `height`.
        reference: height and width of the reference, in tokens.
    """

    def grid(index: int, height: int, width: int) -> np.ndarray:
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        return np.stack([np.full_like(rows, index), rows, columns], axis=-1).reshape(-1, 3)

    image = grid(0, height, width)
    parts = [np.zeros((text_tokens, 3), image.dtype), image]
    return np.concatenate(parts if reference is None else [*parts, grid(1, *reference)])
