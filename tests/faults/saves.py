"""A run's saves without its model, whose program takes seconds to trace: RUN."""

from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp

from ic_jax import cli
from train.checkpoints import Checkpoints
from train.recipe import Saving
from train.run_folder import owned

STEPS = 6
SHAPES = {f"w{n}": (64, 256) for n in range(12)}
METADATA = {"seed": 1}


def main(arguments: list[str]) -> int:
    """Save a state after each of its steps, going on where an earlier process was."""
    return cli.run(lambda: train(Path(arguments[0])))


def train(run: Path) -> None:
    """Take the steps of a run, as the loop of `train.loop` does."""
    with owned(run), closing(Checkpoints(run, Saving(keep=4))) as checkpoints:
        step = checkpoints.latest or 0
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        state = {name: jnp.ones(shape, jnp.float32) for name, shape in SHAPES.items()}
        checkpoints.check_room(state)
        if step:
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state
            )
            state = checkpoints.restore(abstract, METADATA)
        while step < STEPS:
            step += 1
            state = {name: x * 1.5 + step + len(name) for name, x in state.items()}
            checkpoints.save(step, state, METADATA)
        checkpoints.wait()
