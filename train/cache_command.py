"""`python -m train cache`: one pass of the frozen text encoders and the VAE over a data set."""

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
from ic_jax.weights.model_folder import ModelFolder
from train.data.batch_plan import BatchPlan
from train.data.dataset import Dataset
from train.data.encoded_store import EncodedRows
from train.data.errors import DataError
from train.data.pictures import CENTRED, decode_pixels, prepare_target
from train.encode import embeddings, latent_posterior
from train.encoded_cache import Cache
from train.models import TEXT, Tokenizers, load_parts, tokenizers
from train.recipe import Recipe
from train.stage_data import held_out_characters, stage_data

AT_ONCE = 8  # records that a device encodes
Encoded = dict[int, Any]  # by number of the record
Encode = Callable[[np.ndarray], Encoded]


def fill(recipe: Recipe, *, overwrite: bool = False) -> None:
    """Write the missing parts of the recipe's cache, resuming after an interruption.

    Raises:
        DataError: there is no data set, or a part of the cache was made with other settings.
        FileExistsError: another process writes the cache.
        WeightsError: the model is damaged, or lacks an encoder.
    """
    folder = recipe.cache_folder
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"{folder}: another process is writing it"):
        dataset, base = Dataset(recipe.data), ModelFolder.open(recipe.model)
        cache = Cache(recipe, base, dataset)
        stages = stage_data(recipe, dataset, held_out_characters(recipe, dataset))
        plans = [plan for data in stages.values() for plan in data.plans]
        missing = {rows.folder for rows in cache.parts(plans) if not _is_complete(rows)}
        for rows in cache.parts(plans) if not overwrite else ():
            rows.refuse_replacing()
        if missing:
            for rows, encode in Encoders(recipe, base, dataset).parts(cache, plans):
                if rows.folder in missing:
                    missing.remove(rows.folder)
                    _write(rows, encode)
    print(f"{folder}: holds what training by this recipe reads")


def _is_complete(rows: EncodedRows) -> bool:
    try:
        rows.check()
    except DataError:
        return False
    return True


def _write(rows: EncodedRows, encode: Encode) -> None:
    with tqdm(total=len(rows.records), desc=rows.folder.name, unit="record") as bar:

        def with_progress(records: np.ndarray) -> Encoded:
            encoded = encode(records)
            bar.update(len(records))
            return encoded

        rows.write(with_progress)


class Encoders:
    """Frozen encoders, replicated on all devices; their batches are sharded."""

    def __init__(self, recipe: Recipe, base: ModelFolder, dataset: Dataset):
        model = load_parts(recipe, base, {*TEXT, "vae"})
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        replicated, self._rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        self._recipe, self._dataset = recipe, dataset
        self._tokenizers: Tokenizers = tokenizers(recipe, model)
        self._models = jax.device_put((model.t5, model.clip, model.vae), replicated)
        self._posterior = jax.jit(lambda vae, x: latent_posterior(vae, x, jnp.dtype(recipe.dtype)))
        self._embeddings = jax.jit(embeddings)
        self._threads = ThreadPoolExecutor()

    def parts(
        self, cache: Cache, plans: Iterable[BatchPlan]
    ) -> Iterator[tuple[EncodedRows, Encode]]:
        """Yield every part of a cache, and the function that encodes its rows."""
        yield cache.captions, self.captions
        yield cache.prompts, partial(self.prompts, cache.texts)
        for plan in plans:
            yield cache.latents(plan), partial(self.latents, plan)

    def prompts(self, texts: Sequence[str], numbers: np.ndarray) -> Encoded:
        """Return the embeddings of the texts with these numbers."""
        t5, clip, _ = self._models

        def encoded(ids: Any) -> Any:
            return self._embeddings(t5, clip, ids)

        ids = {int(n): self._tokenizers.ids([texts[n]]) for n in numbers}
        return self._in_batches(encoded, {n: type(x)(*(y[0] for y in x)) for n, x in ids.items()})

    def captions(self, records: np.ndarray) -> Encoded:
        """Return the embeddings of the records' captions, prefixed with the trigger."""
        captions = self._read(records, lambda n: self._dataset.read(n).caption)
        numbers = np.array(list(captions), np.int64)
        texts = [self._recipe.prompted(text) for text in captions.values()]
        rows = self.prompts(texts, np.arange(len(texts)))
        return {int(numbers[i]): row for i, row in rows.items()}

    def latents(self, plan: BatchPlan, records: np.ndarray) -> Encoded:
        """Return the latent posteriors of the records' pictures, centre-cropped to their bucket."""
        rng = np.random.default_rng(0)  # unused by CENTRED
        sizes = plan.bucket[np.searchsorted(plan.records, records)]
        encoded: Encoded = {}
        for bucket in np.unique(sizes):
            size = plan.sizes[bucket]

            def cut(n: int, size: Any = size) -> np.ndarray:
                return prepare_target(decode_pixels(self._dataset.read(n)), size, CENTRED, rng)

            pixels = self._read(records[sizes == bucket], cut)
            encoded |= self._in_batches(lambda x: self._posterior(self._models[2], x), pixels)
        return encoded

    def _read(self, records: np.ndarray, read: Callable[[int], Any]) -> Encoded:
        """Return `read` of each record; records that cannot be read are left out with a warning."""

        def read_or_warn(n: int) -> Any:
            try:
                return read(n)
            except (DataError, ImageError) as error:
                warnings.warn(f"record {n} is left out: {error}", stacklevel=2)
                return None

        numbers = [int(n) for n in records]
        values = self._threads.map(read_or_warn, numbers)
        return {n: v for n, v in zip(numbers, values, strict=True) if v is not None}

    def _in_batches(self, program: Callable[[Any], Any], rows: Encoded) -> Encoded:
        """Run the program over `rows` in padded batches of one size, so that it compiles once."""
        size = AT_ONCE * jax.device_count()
        numbers, encoded = list(rows), {}
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            padded = part + part[-1:] * (size - len(part))
            batch = jax.tree.map(lambda *x: np.stack(x), *(rows[n] for n in padded))
            result = jax.device_get(program(jax.device_put(batch, self._rows)))
            for i, n in enumerate(part):
                encoded[n] = type(result)(*(np.asarray(field[i]) for field in result))
        return encoded
