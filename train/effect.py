"""Reference effect: how much the adapter's prediction depends on the reference.

The flow-matching loss falls within hundreds of steps and says little afterwards. So held-out
targets are scored twice on the same noise, with their own reference and with another character's.
The effect is the rise of the loss with the wrong reference. It starts at 0, since the adapter's
values start at zero.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ic_jax.models.adapter import Adapter
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.flux import Flux
from ic_jax.models.rope import Rope
from ic_jax.sharding import gather_to_host
from train.data.encoded_store import Embeddings
from train.encode import Frozen, Ids, StepBatch, StepScalars, encode, row_keys
from train.objective import Examples, Trainable, velocity
from train.recipe import Stage
from train.setup import Setup
from train.step_inputs import StepInputs


class Effect(NamedTuple):
    """Mean squared errors of each row, with the right and with the wrong reference."""

    right: Float[Array, "b"]
    wrong: Float[Array, "b"]


def reference_effect(
    adapter: Adapter, flux: Flux, examples: Examples, rope: Rope, other: Int[Array, "b"]
) -> Effect:
    """Return the errors with the reference of each row itself, and of row `other` instead."""
    dtype = examples.prompt_embeds.dtype
    adapter = jax.tree.map(lambda x: x.astype(dtype), adapter)
    assert examples.features is not None
    swapped = examples._replace(features=SubjectFeatures(*(x[other] for x in examples.features)))

    def row_error(e: Examples) -> Float[Array, "b"]:
        error = velocity(adapter, flux, e, rope) - (e.noise - e.latents)
        return jnp.square(error).mean((1, 2))

    return Effect(row_error(examples), row_error(swapped))


def other_characters(characters: list[str]) -> np.ndarray:
    """Return for each row the next row, cyclically, of another character; int32 [b].

    A row gets its own number where all rows show the same character: its effect is 0.
    """
    n = len(characters)
    others = np.arange(n, dtype=np.int32)
    for i in range(n):
        following = ((i + k) % n for k in range(1, n))
        others[i] = next((j for j in following if characters[j] != characters[i]), i)
    return others


def effect_meter(run: Setup, name: str, inputs: StepInputs) -> "ReferenceEffectMeter | None":
    """Return the meter of a stage; None where its effect cannot be measured."""
    return ReferenceEffectMeter(run, name, inputs) if run.stages[name].measuring else None


class ReferenceEffectMeter:
    """Measures the reference effect, on the same held-out batches and noise every time."""

    def __init__(self, run: Setup, name: str, inputs: StepInputs):
        """Put the batches for the stage called `name` on the devices."""
        self._inputs, stage = inputs, run.recipe.stages[name]
        dtype = jnp.dtype(run.recipe.dtype)
        self._program = partial(_measured, timesteps=stage.timesteps, dtype=dtype)
        self._batches: list[tuple] = []
        for i, host in enumerate(run.measuring_batches(name)):
            rows = inputs.replicate((other_characters(host.character), np.int32(i)))
            scalars = self._without_dropout(inputs.scalars(name, 0, host), stage)
            self._batches.append((inputs.batch(host), inputs.rope(host), scalars, *rows))

    def measure(self, adapter: Trainable) -> dict[str, float]:
        """Return the effect, and the mean losses with the right and the wrong reference."""
        constant = (self._inputs.frozen, self._inputs.empty)
        effects = [self._program(adapter, *constant, *batch) for batch in self._batches]
        right, wrong = (np.concatenate(x) for x in zip(*gather_to_host(effects), strict=True))
        return {
            "reference effect": float((wrong - right).mean()),
            "loss/right reference": float(right.mean()),
            "loss/wrong reference": float(wrong.mean()),
        }

    def _without_dropout(self, scalars: StepScalars, stage: Stage) -> StepScalars:
        """Disable dropout, except of the text where the stage trains without prompts.

        An adapter that never saw prompts shows almost no effect when it is given one.
        """
        values = {"text_dropout": float(stage.text_dropout == 1), "subject_dropout": 0.0}
        changes = self._inputs.replicate({k: np.float32(v) for k, v in values.items()})
        return scalars.replace(**changes)  # type: ignore[attr-defined]


def _measure(
    adapter: Adapter,
    frozen: Frozen,
    empty: Ids | Embeddings,
    batch: StepBatch,
    rope: Rope,
    scalars: StepScalars,
    other: Int[Array, "b"],
    number: Int[Array, ""],
    *,
    timesteps: str,
    dtype: DTypeLike,
) -> Effect:
    keys = row_keys(jnp.zeros_like(number), number, batch)
    examples = encode(frozen, batch, keys, empty, scalars, adapter.config, timesteps, dtype)
    return reference_effect(adapter, frozen.transformer, examples, rope, other)


_measured = jax.jit(_measure, static_argnames=("timesteps", "dtype"))
