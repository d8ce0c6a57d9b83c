"""Encoded cache of a recipe: its folders of embeddings and latents, and what identifies them.

CACHE/captions                T5 and CLIP embeddings of every record's caption
CACHE/prompts                 embeddings of the empty prompt and of the previews' prompts
CACHE/latents-512-1a2b3c4d    latent posteriors of the targets of a batch plan, centre-cropped
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from ic_jax.weights.model_folder import ModelFolder
from train.data.batch_plan import BatchPlan
from train.data.dataset import Dataset
from train.data.encoded_store import Embeddings, EncodedRows, LatentPosterior
from train.data.hashing import digest
from train.recipe import Recipe

VERSION = 1  # of the encoding of a record; a change makes every cache stale


class Cache:
    """Parts of a recipe's cache, written or not, identified by digests and settings."""

    def __init__(self, recipe: Recipe, base: ModelFolder, dataset: Dataset):
        self._recipe, self._folder = recipe, recipe.cache_folder
        self._common = {"version": VERSION, "dtype": recipe.dtype}
        self._data = {"data set": digest([s["sha256"] for s in dataset.card["shards"]])}
        self._vae, text = (
            {
                name: digest({n: e.sha256 for n, e in base.components.get(name, {}).items()})
                for name in components
            }
            for components in (("vae",), ("t5", "clip", "tokenizer", "tokenizer_2"))
        )
        text_facts = {**self._common, **text, "text_length": recipe.text_length}
        self.captions = EncodedRows(
            self._folder / "captions",
            Embeddings,
            np.arange(len(dataset)),
            text_facts | self._data | {"trigger": recipe.trigger},
        )
        self.texts = ["", *map(recipe.prompted, recipe.reporting.preview_prompts)]
        self.prompts = EncodedRows(
            self._folder / "prompts",
            Embeddings,
            np.arange(len(self.texts)),
            text_facts | {"preview_prompts": self.texts[1:]},
        )

    def latents(self, plan: BatchPlan) -> EncodedRows:
        """Return the latent posteriors of a plan's targets."""
        records = hashlib.sha256(plan.records.astype("<i8").tobytes()).hexdigest()
        settings = {"sizes": [list(size) for size in plan.sizes], "records": records}
        return EncodedRows(
            self._folder / f"latents-{plan.resolution}-{digest(settings)[:8]}",
            LatentPosterior,
            plan.records,
            self._common | self._data | self._vae | settings,
        )

    def parts(self, plans: Iterable[BatchPlan]) -> Iterator[EncodedRows]:
        """Yield the captions, the prompts and the latents of each plan, every folder once."""
        latents = {rows.folder: rows for rows in map(self.latents, plans)}
        yield from (self.captions, self.prompts, *latents.values())

    @property
    def empty(self) -> Embeddings:
        """The empty prompt."""
        return self.prompts.read(0)
