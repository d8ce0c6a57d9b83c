"""Rows of training data that lie on the device, and grow while worker processes draw more."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from examples.open_peeps.base_model.fit import Interrupted
from examples.open_peeps.base_model.word_tokenizer import Files, prompt_ids
from examples.open_peeps.train_all.config import SmallModelConfig
from examples.open_peeps.world import draw
from train.workers import follow_parent

OF_PERSON = ("crops", "person")  # fields of a person; all others are of a scene
CROPS_BESIDE = "crops beside"  # field of the crops of a scene's other person; goes with "crops"
PERSON_IDS = 32  # ids of a caption of a person: they end long before


class Drawing:
    """Chunks that worker processes draw into a folder, in the background.

    The arrays of finished chunks are put on the device by `collect`, in the thread that trains.
    """

    def __init__(
        self,
        folder: Path,
        config: SmallModelConfig,
        tokenizers: dict[str, Files],
        workers: int,
        stop: Callable[[], bool],
    ):
        folder.mkdir(parents=True, exist_ok=True)
        cell = 2 ** (len(config.vae_widths) - 1)
        self._jobs = draw.jobs(
            folder, config.chunks, config.seed, config.side, config.encoder_side, cell
        )
        self.config, self._tokenizers, self._folder = config, tokenizers, folder
        self._stop = stop
        # Spawned: a fork of a process with JAX's threads may hang.
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), follow_parent)
        self._futures = [self._pool.submit(draw.draw_chunk, job) for job in self._jobs]
        self._ready: list[int] = []
        self._some = threading.Condition()
        threading.Thread(target=self._watch, daemon=True).start()
        self.chunks = 0
        self.rows = DeviceRows(shapes(config), config.chunks * draw.PEOPLE)

    def _watch(self) -> None:
        for future in as_completed(self._futures):
            if not future.cancelled():
                with self._some:
                    self._ready.append(-1 if future.exception() else future.result())
                    self._some.notify()

    def collect(self, least: int = 0) -> None:
        """Put the chunks that are finished on the device, and wait until there are `least`.

        Raises:
            Interrupted: a stop is asked for while it waits.
        """
        while True:
            with self._some:
                while not self._ready and self.chunks < least:
                    self._some.wait(timeout=1)
                    if self._stop():
                        raise Interrupted("the drawing of the data")
                numbers, self._ready = self._ready[:], []
            for number in numbers:
                if number < 0:
                    next(f for f in self._futures if f.done() and f.exception()).result()
                self.rows.append(self._arrays(draw.read_chunk(self._folder, number)))
                self.chunks += 1
            if self.chunks >= least:
                return

    def close(self) -> None:
        """End the drawing; chunks that are not drawn stay undrawn."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _arrays(self, chunk: draw.Chunk) -> dict[str, np.ndarray]:
        ids: dict[str, np.ndarray] = {}
        for kind, lists in chunk.texts.items():
            flat = [text for texts in lists for text in texts]
            clip, t5 = prompt_ids(self._tokenizers, flat, self.config.text_length)
            people = len(lists)
            if kind == "person":
                ids["person"] = clip[:, :PERSON_IDS]
            else:
                ids[f"clip/{kind}"] = clip.reshape(people, -1, clip.shape[1])
                ids[f"t5/{kind}"] = t5.reshape(people, -1, t5.shape[1])
        names = {name: name for name in draw.ARRAYS} | {"references": "crops"}
        arrays = {names[name]: getattr(chunk, name) for name in draw.ARRAYS}
        return arrays | {name: x.astype(np.int16) for name, x in ids.items()}


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
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def compute(self, function: Callable[[Array], dict[str, Array]], name: str) -> None:
        """Add fields that a function computes from one, for the rows that are there."""
        parts = []
        for at in range(0, len(self), draw.PEOPLE):
            pixels = self.arrays[name][at : at + draw.PEOPLE]
            parts.append(function(pixels))
        self.arrays |= jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write rows behind those that are there."""
        self.arrays = _write(self.arrays, dict(arrays), np.int32(self._count))
        self._count += len(next(iter(arrays.values())))


@partial(jax.jit, donate_argnums=0)
def _write(arrays: dict[str, Array], new: dict[str, Array], at: Int[Array, ""]) -> dict[str, Array]:
    def write(whole: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice(whole, part, (at, *[0] * (whole.ndim - 1)))

    return {name: write(arrays[name], new[name]) for name in arrays}


class BatchRows:
    """Batches of people or of their scenes, from rows on the device (`base_model.fit.Rows`).

    Before each batch, chunks that were drawn meanwhile are added.
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
