"""Part of a benchmark for what runs once a picture, beside the steps: the encoders and the VAE."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ic_jax import flow
from ic_jax.measuring.parts import tried
from ic_jax.measuring.random_weights import random_like, random_module
from ic_jax.measuring.timing import compiled, peak_gigabytes, timed
from ic_jax.models.features import subject_features
from infer.bench.drawing import Drawing

TOKEN_IDS = 32  # random ids are below this; every vocabulary has more


def encoders(drawing: Drawing) -> dict[str, Any]:
    """Return times of the text encoders, the image encoders and the VAE's decoder."""
    configs, s = drawing.configs, drawing.settings
    side = configs["siglip"].image_size
    height, width = (flow.PATCH * n for n in drawing.grid)
    words = configs["clip"].max_position_embeddings
    features = partial(subject_features, config=configs["adapter"], dtype=drawing.dtype)
    cases: dict[str, tuple[Callable[..., Any], tuple[str, ...], tuple[Array, ...]]] = {
        "text": (
            lambda t5, clip, ids, clip_ids: (t5(ids), clip(clip_ids)),
            ("t5", "clip"),
            (_whole(jnp.int32, s.batch, s.text_length), _whole(jnp.int32, s.batch, words)),
        ),
        "subject": (
            lambda siglip, dinov2, low, high: features(siglip, dinov2, low=low, high=high),
            ("siglip", "dinov2"),
            (_whole(jnp.uint8, 1, side, side, 3), _whole(jnp.uint8, 1, 4, side, side, 3)),
        ),
        "VAE": (
            lambda vae, x: vae.decode(vae.from_latents(x)),
            ("vae",),
            (_latents(drawing, s.batch, height, width, configs["vae"].latent_channels),),
        ),
    }
    return {name: tried(partial(_measured, drawing, *case)) for name, case in cases.items()}


def _measured(
    drawing: Drawing,
    function: Callable[..., Any],
    components: tuple[str, ...],
    inputs: tuple[Array, ...],
) -> dict[str, Any]:
    configs = drawing.configs
    models = [random_module(k, configs[k], None, drawing.dtype) for k in components]
    program = compiled(function, *models, *inputs)
    results = jax.tree.leaves(program.run(*models, *inputs))
    finite = all(bool(jnp.isfinite(x).all()) for x in results)
    times = timed(lambda: program.run(*models, *inputs), drawing.settings.samples)
    return times.to_dict() | program.to_dict() | {"finite": finite, "peak GB": peak_gigabytes()}


def _whole(dtype: Any, *shape: int) -> Array:
    return random_like(jax.ShapeDtypeStruct(shape, dtype), "input", TOKEN_IDS)


def _latents(drawing: Drawing, *shape: int) -> Array:
    return random_like(jax.ShapeDtypeStruct(shape, drawing.dtype), "latents")
