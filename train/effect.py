"""Reference effect: how much the adapter's prediction depends on the reference.

The flow-matching loss falls within hundreds of steps and says little afterwards. So held-out
targets are scored several times on the same noise: with their own reference, with another
character's, and with the other kind of their own. The effect is the rise of the loss with the wrong
reference. It starts at 0, since the adapter's values start at zero.

The reference of the right character is the target's own picture or another one, and the effect is
reported for both. An adapter that copies has an effect with the target's own picture and none, or a
negative one, with another picture of the character.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ic_jax.models.adapter import Adapter
from ic_jax.models.features import SubjectFeatures, subject_features
from ic_jax.models.flux import Flux
from ic_jax.models.rope import Rope
from ic_jax.preprocessing.images import ImageError
from ic_jax.sharding import gather_to_host
from train.data.characters import next_picture
from train.data.encoded_store import Embeddings
from train.data.errors import DataError
from train.data.loader import HostBatch
from train.data.pictures import CENTRED, decode_character, prepare_reference
from train.encode import Frozen, Ids, Reference, StepBatch, StepScalars, encode, row_keys
from train.objective import Examples, Trainable, velocity
from train.recipe import Stage
from train.setup import Setup
from train.step_inputs import StepInputs

EFFECT = "reference effect"
SAME, ANOTHER = f"{EFFECT}/same picture", f"{EFFECT}/another picture"


# Limits of `reading` [ours]: of the effect over the loss, and of the effects over each other, which
# is half for copying and nine tenths on pairs with the small model (docs/reference-effect.svg).
UNSEEN, COPIED = 0.001, 0.6


class Effect(NamedTuple):
    """Mean squared errors of each row, by its reference."""

    right: Float[Array, "b"]  # as the stage trains
    counterpart: Float[Array, "b"]  # of the right character: the same picture where it was another
    wrong: Float[Array, "b"]  # of another character


class Rows(NamedTuple):
    """Rows of a batch that the means of its errors go over."""

    compared: Bool[np.ndarray, "b"]  # has a reference of another character
    paired: Bool[np.ndarray, "b"]  # the stage's reference is another picture
    has_another: Bool[np.ndarray, "b"]  # there is another picture of the character


def reference_effect(
    adapter: Adapter,
    flux: Flux,
    examples: Examples,
    rope: Rope,
    references: SubjectFeatures,
    other: Int[Array, "b"],
) -> Effect:
    """Return the errors with each row's references, and with the first of row `other` instead.

    Args:
        references: features [2, b, ...] of each row's right reference and of its counterpart.
    """
    dtype = examples.prompt_embeds.dtype
    adapter = jax.tree.map(lambda x: x.astype(dtype), adapter)
    wrong = jax.tree.map(lambda x: x[0, other][None], references)
    references = jax.tree.map(lambda x, y: jnp.concatenate((x, y)), references, wrong)

    def row_error(features: SubjectFeatures) -> Float[Array, "b"]:
        e = examples._replace(features=features)
        error = velocity(adapter, flux, e, rope) - (e.noise - e.latents)
        return jnp.square(error).mean((1, 2))

    return Effect(*jax.lax.map(row_error, references))  # one after the other, compiled once


def other_characters(characters: list[str]) -> np.ndarray:
    """Return for each row the next row, cyclically, of another character; int32 [b].

    A row gets its own number where all rows show the same character.
    """
    n = len(characters)
    others = np.arange(n, dtype=np.int32)
    for i in range(n):
        following = ((i + k) % n for k in range(1, n))
        others[i] = next((j for j in following if characters[j] != characters[i]), i)
    return others


def effect_meter(run: Setup, name: str, inputs: StepInputs) -> "ReferenceEffectMeter | None":
    """Return the meter of a stage; None where its effect cannot be measured."""
    if not (run.stages[name].measuring and run.recipe.reporting.effect_every):
        return None
    return ReferenceEffectMeter(run, name, inputs)


class ReferenceEffectMeter:
    """Measures the reference effect, on the same held-out batches and noise every time."""

    def __init__(self, run: Setup, name: str, inputs: StepInputs):
        """Put the batches for the stage called `name` on the devices.

        Raises:
            DataError: no batch shows two characters, since no bucket has pictures of two.
        """
        self._inputs, stage = inputs, run.recipe.stages[name]
        dtype = jnp.dtype(run.recipe.dtype)
        self._program = partial(_measured, timesteps=stage.timesteps, dtype=dtype)
        self._batches: list[tuple] = []
        rows: list[Rows] = []
        for i, host in islice(_mixed(run.measuring_batches(name)), run.effect_batches(name)):
            others = other_characters(host.character)
            counterparts, has_another = _counterparts(run, host)
            rows.append(Rows(others != np.arange(len(others)), host.paired, has_another))
            scalars = self._without_dropout(inputs.scalars(name, 0, host), stage)
            counterpart = inputs.batch(counterparts).reference
            batch = (inputs.batch(host), counterpart, inputs.rope(host), scalars)
            self._batches.append((*batch, *inputs.replicate((others, np.int32(i)))))
        if not rows:
            raise DataError(
                f"{run.dataset.path}: no two held-out characters have pictures of the same shape, "
                f"so that {name} has no wrong references to compare with; hold out more, or write "
                "reporting.effect_every = 0"
            )
        self._rows = Rows(*map(np.concatenate, zip(*rows, strict=True)))

    def measure(self, adapter: Trainable) -> dict[str, float]:
        """Return the effects, and the mean losses with the right and the wrong reference."""
        constant = (self._inputs.frozen, self._inputs.empty)
        effects = gather_to_host([self._program(adapter, *constant, *b) for b in self._batches])
        errors = map(np.concatenate, zip(*effects, strict=True))
        return summary(Effect(*errors), self._rows)  # type: ignore[arg-type]

    def _without_dropout(self, scalars: StepScalars, stage: Stage) -> StepScalars:
        """Disable dropout, except of the text where the stage trains without prompts.

        An adapter that never saw prompts shows almost no effect when it is given one.
        """
        values = {"text_dropout": float(stage.text_dropout == 1), "subject_dropout": 0.0}
        changes = self._inputs.replicate({k: np.float32(v) for k, v in values.items()})
        return scalars.replace(**changes)  # type: ignore[attr-defined]


def summary(errors: Effect, rows: Rows) -> dict[str, float]:
    """Return the effects and losses to report, of all rows of a measurement.

    The effects with the same and with another picture are of the same targets.
    """
    right, counterpart, wrong = (x[rows.compared] for x in errors)
    paired, has_another = rows.paired[rows.compared], rows.has_another[rows.compared]
    values = {
        EFFECT: float((wrong - right).mean()),
        "loss/right reference": float(right.mean()),
        "loss/wrong reference": float(wrong.mean()),
    }
    if has_another.any():
        same, another = np.where(paired, (counterpart, right), (right, counterpart))
        values[SAME] = float((wrong - same)[has_another].mean())
        values[ANOTHER] = float((wrong - another)[has_another].mean())
    return values


def reading(values: Mapping[str, float]) -> str:
    """Return what the effects of a measurement tell, in words."""
    if values[EFFECT] < UNSEEN * values["loss/right reference"]:
        return "the adapter ignores its reference, or has not learnt to see it yet"
    if ANOTHER in values and values[ANOTHER] < COPIED * values[SAME]:
        return "it copies the reference: another picture of the character helps far less"
    return "the adapter uses its reference"


def _mixed(batches: Iterator[HostBatch]) -> Iterator[tuple[int, HostBatch]]:
    """Yield the batches that show two characters or more, with their number."""
    return ((i, host) for i, host in enumerate(batches) if len(set(host.character)) > 1)


def _counterparts(run: Setup, host: HostBatch) -> tuple[HostBatch, Bool[np.ndarray, "b"]]:
    """Return a batch with the other kind of references, and which rows have another picture.

    A reference is the target's own picture where the batch has another one, and the reverse. A row
    without another picture, or with a damaged one, keeps its reference.
    """
    assert host.low is not None
    assert host.high is not None
    low, high, has_another = host.low.copy(), host.high.copy(), host.paired.copy()
    for row, (target, paired) in enumerate(zip(host.record, host.paired, strict=True)):
        record = int(target) if paired else next_picture(run.dataset, int(target))
        try:
            picture = decode_character(run.dataset.read(record))
        except ImageError:
            has_another[row] = False
            continue
        has_another[row] = paired or record != target
        rng = np.random.default_rng(0)  # which CENTRED does not use
        low[row], high[row], _ = prepare_reference(picture, low.shape[1], CENTRED, rng)
    return host._replace(low=low, high=high), has_another


def _measure(
    adapter: Adapter,
    frozen: Frozen,
    empty: Ids | Embeddings,
    batch: StepBatch,
    counterpart: Reference,
    rope: Rope,
    scalars: StepScalars,
    other: Int[Array, "b"],
    number: Int[Array, ""],
    *,
    timesteps: str,
    dtype: DTypeLike,
) -> Effect:
    assert frozen.siglip is not None
    assert frozen.dinov2 is not None
    keys = row_keys(jnp.zeros_like(number), number, batch)
    examples = encode(frozen, batch, keys, empty, scalars, None, timesteps, dtype)
    encoded = partial(subject_features, frozen.siglip, frozen.dinov2, adapter.config, dtype=dtype)
    pictures = jax.tree.map(lambda *x: jnp.stack(x), batch.reference, counterpart)
    references = jax.lax.map(lambda pair: encoded(*pair), pictures)
    return reference_effect(adapter, frozen.transformer, examples, rope, references, other)


_measured = jax.jit(_measure, static_argnames=("timesteps", "dtype"))
