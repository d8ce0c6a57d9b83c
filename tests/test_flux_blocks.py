"""FLUX without blocks of one kind, as diffusers takes it: converted, unstacked, with a LoRA."""

import dataclasses

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ic_jax.models.unstacked import unstack_flux
from ic_jax.weights.lora.delta import LoraDelta, LoraFile
from ic_jax.weights.lora.lora_set import LoraSet
from ic_jax.weights.lora.targets import targets_of
from tests.oracle import converted, randomize, relative
from tests.test_flux import DEV, GRID, our_velocity, their_velocity

RNG = np.random.default_rng(0)
RANK = 3


def draw(*shape):
    return RNG.standard_normal(shape, np.float32)


@pytest.mark.parametrize(
    ("double", "single", "module"),
    [
        (0, 2, "single_transformer_blocks.1.attn.to_q"),
        (2, 0, "transformer_blocks.1.attn.to_q"),
        (0, 0, "proj_out"),
    ],
)
def test_velocity_and_lora(double, single, module):
    config = dataclasses.replace(DEV, num_layers=double, num_single_layers=single)
    theirs = randomize(diffusers.FluxTransformer2DModel(**config.to_dict()))
    model = converted(theirs)
    inputs = (
        draw(2, GRID[0] * GRID[1], config.in_channels),
        draw(2, 7, config.joint_attention_dim),
        draw(2, config.pooled_projection_dim),
    )
    case = (config, theirs, model, inputs)
    assert relative(our_velocity(case, jnp.float32), their_velocity(case, torch.float32)) < 1e-5

    linear = theirs.get_submodule(module)
    change = LoraDelta(draw(RANK, linear.in_features), draw(linear.out_features, RANK), 0.1)
    with torch.no_grad():
        linear.weight += torch.from_numpy(change.scale * change.b @ change.a)
    unstacked = unstack_flux(model)
    loras = LoraSet(targets_of({"transformer": config}), lambda: {"transformer": unstacked})
    loras.add(LoraFile("style", {("transformer", module): change}))
    case = (config, theirs, unstacked, inputs)
    assert relative(our_velocity(case, jnp.float32), their_velocity(case, torch.float32)) < 1e-5
