"""Activations of a training step, in closed form."""

from ic_jax import flow
from ic_jax.config import FluxConfig, VaeConfig
from train.recipe import Recipe, Stage


def block_input_bytes(recipe: Recipe, stage: Stage, flux: FluxConfig, vae: VaeConfig) -> int:
    """Return the bytes of one sample's inputs of all blocks.

    A step keeps no less from its forward to its backward pass, whatever `remat` is.
    """
    blocks = flux.num_layers + flux.num_single_layers
    pixels = flow.PATCH * vae.downscale  # along one side of a token
    tokens = (stage.resolution // pixels) ** 2 + recipe.text_length
    return blocks * tokens * flux.hidden_size * (2 if recipe.dtype == "bfloat16" else 4)
