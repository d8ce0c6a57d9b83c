"""The reference effect: does the adapter look at the reference at all?

The flow-matching loss falls within hundreds of steps and then says nothing. So held-out targets
are scored twice on the same noise, with their own reference and with another character's; what
the wrong one costs is the effect. It starts at 0, since the adapter's values start at zero.
"""

from collections.abc import Iterable
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
from train.data.loader import Batch as HostBatch
from train.encode import Batch, Frozen, Ids, Knobs, encode, row_keys
from train.feed import Feed
from train.objective import Examples, Trained, velocity
from train.recipe import Recipe, Stage


class Effect(NamedTuple):
    """Mean squared errors of each row."""

    right: Float[Array, "b"]
    wrong: Float[Array, "b"]


def reference_effect(
    adapter: Adapter, flux: Flux, examples: Examples, rope: Rope, other: Int[Array, "b"]
) -> Effect:
    """Errors with each row's own reference, and with that of row `other`."""
    dtype = examples.prompt_embeds.dtype
    adapter = jax.tree.map(lambda x: x.astype(dtype), adapter)
    assert examples.features is not None
    swapped = examples._replace(features=SubjectFeatures(*(x[other] for x in examples.features)))

    def row_error(e: Examples) -> Float[Array, "b"]:
        error = velocity(adapter, flux, e, rope) - (e.noise - e.latents)
        return jnp.square(error).mean((1, 2))

    return Effect(row_error(examples), row_error(swapped))


def other_characters(characters: list[str]) -> np.ndarray:
    """For each row the next one, going round, that shows another character; int32 [b].

    A row without any points at itself: its effect is 0.
    """
    n = len(characters)
    chosen = np.arange(n, dtype=np.int32)
    for i in range(n):
        ahead = ((i + k) % n for k in range(1, n))
        chosen[i] = next((j for j in ahead if characters[j] != characters[i]), i)
    return chosen


class Meter:
    """Measures the effect on the same held-out batches and noise every time."""

    def __init__(self, recipe: Recipe, name: str, found: Iterable[HostBatch], feed: Feed):
        """For the stage called `name`, on the batches `found` (`train.stage_data.measuring`)."""
        self._feed, stage = feed, recipe.stages[name]
        self._program = partial(_measured, timesteps=stage.timesteps, dtype=jnp.dtype(recipe.dtype))
        self._batches: list[tuple] = []
        for i, host in enumerate(found):
            other = other_characters(host.character)
            knobs = self._settled(feed.knobs(stage, 0, host), stage)
            given = (feed.batch(host), feed.rope(host), knobs, *feed.put((other, np.int32(i))))
            self._batches.append(given)

    def measure(self, adapter: Trained) -> dict[str, float]:
        """The effect, and the two mean losses that it is the difference of."""
        feed = self._feed
        found = [self._program(adapter, feed.frozen, feed.empty, *given) for given in self._batches]
        right, wrong = (np.concatenate(x) for x in zip(*gather_to_host(found), strict=True))
        return {
            "reference effect": float((wrong - right).mean()),
            "loss/right reference": float(right.mean()),
            "loss/wrong reference": float(wrong.mean()),
        }

    def _settled(self, knobs: Knobs, stage: Stage) -> Knobs:
        """Nothing is dropped, but the words where the stage trains without any: told what to
        draw, an adapter that never was has an effect some times smaller, lost in the noise."""
        values = {"text_dropout": float(stage.text_dropout == 1), "subject_dropout": 0.0}
        put = self._feed.put({name: np.float32(value) for name, value in values.items()})
        return knobs.replace(**put)  # type: ignore[attr-defined]


def _measure(
    adapter: Adapter,
    frozen: Frozen,
    empty: Ids | Embeddings,
    batch: Batch,
    rope: Rope,
    knobs: Knobs,
    other: Int[Array, "b"],
    number: Int[Array, ""],
    *,
    timesteps: str,
    dtype: DTypeLike,
) -> Effect:
    keys = row_keys(jnp.zeros_like(number), number, batch)
    examples = encode(frozen, batch, keys, empty, knobs, adapter.config, timesteps, dtype)
    return reference_effect(adapter, frozen.transformer, examples, rope, other)


_measured = jax.jit(_measure, static_argnames=("timesteps", "dtype"))
