"""Rows of training data that lie on the device, and grow while more is drawn."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from examples.open_peeps.train_all.config import SmallModelConfig
from examples.open_peeps.world import draw

OF_PERSON = ("crops", "person")  # fields of a person; all others are of a scene
CROPS_BESIDE = "crops beside"  # field of the crops of a scene's other person; goes with "crops"
PERSON_IDS = 32  # ids of a caption of a person: they end long before


def shapes(config: SmallModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of one person's arrays by name."""
    side, crop, v = config.side, config.encoder_side, draw.SCENES
    grid = side // 2 ** (len(config.vae_widths) - 1)
    values: dict[str, tuple[tuple[int, ...], Any]] = {
        "pixels": ((v, side, side, 3), jnp.uint8),
        "crops": ((5, crop, crop, 3), jnp.uint8),
        "focus": ((v, grid, grid), jnp.float16),
        "regions": ((v, 2, (grid // 2) ** 2), jnp.float16),
        "beside": ((v,), jnp.int16),
        "person": ((PERSON_IDS,), jnp.int16),
    }
    for kind in ("full", "scene", "untold"):
        values[f"clip/{kind}"] = ((v, 77), jnp.int16)
        values[f"t5/{kind}"] = ((v, config.text_length), jnp.int16)
    return {name: jax.ShapeDtypeStruct(*value) for name, value in values.items()}


class DeviceRows:
    """Rows of people in arrays on the device; the first `len` of `capacity` are there."""

    def __init__(self, row: Mapping[str, jax.ShapeDtypeStruct], capacity: int):
        self.arrays = {k: jnp.zeros((capacity, *x.shape), x.dtype) for k, x in row.items()}
        self._capacity, self._count = capacity, 0

    def __len__(self) -> int:
        return self._count

    def compute(self, function: Callable[[Array], dict[str, Array]], name: str) -> None:
        """Add fields that a function computes from one, for the rows that are there."""
        count = min(draw.PEOPLE, self._capacity)
        new: dict[str, Array] = {}
        for at in range(0, len(self), count):
            values = function(_slice(self.arrays[name], np.int32(at), count))
            if not new:
                new = {
                    k: jnp.zeros((self._capacity, *x.shape[1:]), x.dtype) for k, x in values.items()
                }
            new = _write(new, values, np.int32(at))
        self.arrays |= new

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write rows behind those that are there."""
        self.arrays = _write(self.arrays, dict(arrays), np.int32(self._count))
        self._count += len(next(iter(arrays.values())))


@partial(jax.jit, static_argnames="count")
def _slice(array: Array, at: Int[Array, ""], count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, at, count)


@partial(jax.jit, donate_argnums=0)
def _write(arrays: dict[str, Array], new: dict[str, Array], at: Int[Array, ""]) -> dict[str, Array]:
    def write(whole: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice(whole, part, (at, *[0] * (whole.ndim - 1)))

    return {name: write(arrays[name], new[name]) for name in arrays}


class BatchRows:
    """Batches of people or of their scenes, from rows on the device (`base_model.fit.Rows`).

    Before each batch, chunks that were drawn meanwhile may be added.
    """

    def __init__(
        self,
        rows: DeviceRows,
        fields: tuple[str, ...],
        scenes: tuple[int, int],
        collect: Callable[[], None],
    ):
        self._rows, self._fields, self._collect = rows, fields, collect
        self._first, self._count = scenes[0], scenes[1] - scenes[0]

    def __len__(self) -> int:
        self._collect()
        return len(self._rows) * self._count

    def take(self, indices: Int[np.ndarray, "b"]) -> dict[str, Array]:
        """Return the fields of scenes by number, each with those of its person."""
        names = {"beside" if name == CROPS_BESIDE else name for name in self._fields}
        arrays = {name: self._rows.arrays[name] for name in names}
        person, scene = np.divmod(indices.astype(np.int32), np.int32(self._count))
        return _take(arrays, person, scene + np.int32(self._first))


@jax.jit
def _take(
    arrays: dict[str, Array], person: Int[Array, "b"], scene: Int[Array, "b"]
) -> dict[str, Array]:
    taken = {
        name: x[person] if name in OF_PERSON else x[person, scene] for name, x in arrays.items()
    }
    if "beside" in taken:
        taken[CROPS_BESIDE] = arrays["crops"][person + taken.pop("beside").astype(jnp.int32)]
    return taken
