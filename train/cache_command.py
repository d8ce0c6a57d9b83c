"""`python -m train cache`: run a recipe's frozen text encoders and VAE once over its data set."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from ic_jax.files import locked
from ic_jax.preprocessing.images import ImageError
from train import stage_data
from train.data.batch_plan import BatchPlan
from train.data.characters import held_out
from train.data.dataset import Dataset
from train.data.encoded_store import EncodedRows
from train.data.errors import DataError
from train.data.pictures import CENTRED, decode_pixels, prepare_target
from train.encode import embeddings, latent_posterior
from train.encoded_cache import Cache
from train.models import TEXT, Tokenizers, load_parts, tokenizers
from train.recipe import Recipe

AT_ONCE = 8  # records that a device encodes
Made = dict[int, Any]
Make = Callable[[np.ndarray], Made]


def fill(recipe: Recipe, *, overwrite: bool = False) -> None:
    """Write what is not there yet of the recipe's cache; an interrupted call is gone on with.

    Raises:
        DataError: no data set; or a part that was made with other settings is in the way.
        FileExistsError: another process writes it.
        WeightsError: the model is damaged, or lacks an encoder.
    """
    folder = recipe.cache_folder
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"{folder}: another process is writing it"):
        dataset = Dataset(recipe.data)
        stored, held = Cache(recipe, dataset), held_out(dataset, recipe.holdout)
        wanted = list(stage_data.every(recipe, dataset, held))
        missing = {rows.folder for rows in stored.parts(wanted) if not _whole(rows)}
        for rows in stored.parts(wanted) if not overwrite else ():
            rows.refuse_replacing()
        if missing:
            for rows, make in Encoders(recipe, dataset).makers(stored, wanted):
                if rows.folder in missing:
                    missing.remove(rows.folder)
                    _write(rows, make)
    print(f"{folder}: holds what training by this recipe reads")


def _whole(rows: EncodedRows) -> bool:
    try:
        rows.check()
    except DataError:
        return False
    return True


def _write(rows: EncodedRows, make: Make) -> None:
    with tqdm(total=len(rows.records), desc=rows.folder.name, unit="record") as bar:

        def counted(records: np.ndarray) -> Made:
            made = make(records)
            bar.update(len(records))
            return made

        rows.write(counted)


class Encoders:
    """The frozen encoders on all devices, rows spread over them."""

    def __init__(self, recipe: Recipe, dataset: Dataset):
        model = load_parts(recipe, {*TEXT, "vae"})
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        whole, self._rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        self._recipe, self._dataset = recipe, dataset
        self._tokenizers: Tokenizers = tokenizers(recipe, model)
        self._models = jax.device_put((model.t5, model.clip, model.vae), whole)
        self._moments = jax.jit(lambda vae, x: latent_posterior(vae, x, jnp.dtype(recipe.dtype)))
        self._embeddings = jax.jit(embeddings)
        self._threads = ThreadPoolExecutor()

    def makers(
        self, stored: Cache, wanted: Iterable[BatchPlan]
    ) -> Iterator[tuple[EncodedRows, Make]]:
        """Every part of a cache, and what makes rows of it."""
        yield stored.captions, self.captions
        yield stored.prompts, partial(self.prompts, stored.texts)
        for plan in wanted:
            yield stored.latents(plan), partial(self.latents, plan)

    def prompts(self, texts: Sequence[str], which: np.ndarray) -> Made:
        """Embeddings of some of `texts`, by their numbers."""
        t5, clip, _ = self._models

        def encoded(ids: Any) -> Any:
            return self._embeddings(t5, clip, ids)

        given = {int(n): self._tokenizers.ids([texts[n]]) for n in which}
        return self._in_batches(encoded, {n: type(x)(*(y[0] for y in x)) for n, x in given.items()})

    def captions(self, records: np.ndarray) -> Made:
        """Embeddings of the records' captions, behind the trigger."""
        found = self._read(records, lambda n: self._dataset.read(n).caption)
        numbers = np.array(list(found), np.int64)
        texts = [self._recipe.prompted(text) for text in found.values()]
        made = self.prompts(texts, np.arange(len(texts)))
        return {int(numbers[i]): row for i, row in made.items()}

    def latents(self, plan: BatchPlan, records: np.ndarray) -> Made:
        """Latent posteriors of the records' pictures, each cut to its bucket at the middle."""
        rng = np.random.default_rng(0)  # draws nothing: CENTRED
        sizes = plan.bucket[np.searchsorted(plan.records, records)]
        made: Made = {}
        for bucket in np.unique(sizes):
            size = plan.sizes[bucket]

            def cut(n: int, size: Any = size) -> np.ndarray:
                return prepare_target(decode_pixels(self._dataset.read(n)), size, CENTRED, rng)

            found = self._read(records[sizes == bucket], cut)
            made |= self._in_batches(lambda x: self._moments(self._models[2], x), found)
        return made

    def _read(self, records: np.ndarray, read: Callable[[int], Any]) -> Made:
        """What `read` gives for each record, but for those that it cannot read."""

        def one(n: int) -> Any:
            try:
                return read(n)
            except (DataError, ImageError) as error:
                warnings.warn(f"record {n} is left out: {error}", stacklevel=2)
                return None

        numbers = [int(n) for n in records]
        found = zip(numbers, self._threads.map(one, numbers), strict=True)
        return {n: value for n, value in found if value is not None}

    def _in_batches(self, program: Callable[[Any], Any], rows: Made) -> Made:
        """The program's rows for each of `rows`, always as many at once: one compilation."""
        size = AT_ONCE * jax.device_count()
        numbers, made = list(rows), {}
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            padded = part + part[-1:] * (size - len(part))
            batch = jax.tree.map(lambda *x: np.stack(x), *(rows[n] for n in padded))
            result = jax.device_get(program(jax.device_put(batch, self._rows)))
            for i, n in enumerate(part):
                made[n] = type(result)(*(np.asarray(field[i]) for field in result))
        return made
