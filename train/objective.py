"""Flow-matching loss of FLUX, for the adapter or a style LoRA.

x_s = (1 - s) x0 + s noise; the target is the velocity noise - x0; the loss is the mean squared
error (black-forest-labs/flux; arXiv 2403.03206). Only the trainable parameters are differentiated:
the base is an argument like the batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ic_jax.models.adapter import Adapter
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.flux import Flux
from ic_jax.models.image_prompt import ImagePrompt
from ic_jax.models.layers import Remat
from ic_jax.models.rope import Rope
from train.lora import StyleLora, with_lora

Trainable = Adapter | StyleLora


class Examples(NamedTuple):
    """Encoded examples with their noise: the loss depends on them and the models alone."""

    latents: Float[Array, "b n c"]  # packed, of the target pictures
    noise: Float[Array, "b n c"]
    sigma: Float[Array, "b"]  # noise level in 0..1
    prompt_embeds: Float[Array, "b t e"]
    pooled: Float[Array, "b p"]
    features: SubjectFeatures | None  # of the reference pictures, b k of them; a LoRA has none
    subject_scale: Float[Array, "b"]  # 0 drops the subjects
    guidance: Float[Array, "b"]
    weight: Float[Array, "b n c"] | None = None  # of each latent's error, mean 1; None is 1
    regions: Float[Array, "b k n"] | None = None  # weight of each subject at each image token


def velocity(
    params: Trainable, flux: Flux, examples: Examples, rope: Rope, *, remat: Remat = "none"
) -> Float[Array, "b n c"]:
    """Return the model's velocity at each example's noise level, float32."""
    e, dtype = examples, examples.prompt_embeds.dtype
    sigma = e.sigma[:, None, None]
    noisy = ((1 - sigma) * e.latents + sigma * e.noise).astype(dtype)
    prompt = None
    if isinstance(params, Adapter):
        assert e.features is not None
        projector = params.image_proj
        gathered = projector.gather(e.features, remat=remat)
        subjects = 1 if e.regions is None else e.regions.shape[1]
        times = jnp.repeat(1000.0 * e.sigma, subjects)
        tokens = projector.resample(gathered, times, remat=remat)
        scale = e.subject_scale
        if e.regions is not None:
            tokens = tokens.reshape(-1, subjects, *tokens.shape[1:])
            scale = jnp.repeat(scale[:, None], subjects, axis=1)
        prompt = ImagePrompt(params.ip_adapter, tokens, scale, e.regions)
    else:
        flux = with_lora(flux, params)
    return flux(
        noisy, e.prompt_embeds, e.pooled, e.sigma, e.guidance, rope, prompt, remat=remat
    ).astype(jnp.float32)


def loss(
    params: Trainable, flux: Flux, examples: Examples, rope: Rope, *, remat: Remat = "none"
) -> tuple[Float[Array, ""], Float[Array, "b n c"]]:
    """Return the weighted mean squared error over all elements, and the velocity.

    The float32 parameters are cast to the base's dtype inside, so that their gradients are
    float32.
    """
    dtype = examples.prompt_embeds.dtype
    cast = jax.tree.map(lambda x: x.astype(dtype), params)
    predicted = velocity(cast, flux, examples, rope, remat=remat)
    error = jnp.square(predicted - (examples.noise - examples.latents))
    if examples.weight is not None:
        error = examples.weight * error
    return error.mean(), predicted
