"""What a step is given, on the devices: the frozen base, batches, rotary tables, knobs."""

from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import flow
from ic_jax.models.rope import Rope, rope_table
from ic_jax.sharding import RULES, global_from_local_rows, local_rows, replicate_to_mesh
from train.data.loader import Batch as HostBatch
from train.encode import Batch, Ids, Knobs, Reference
from train.encoded_cache import Cache
from train.models import Models
from train.optimizer import learning_rate
from train.recipe import Recipe, Stage


class Feed:
    """Puts things where they belong: rows spread over the mesh, everything else on each device."""

    def __init__(self, recipe: Recipe, models: Models, stored: Cache | None):
        self._models, self._recipe = models, recipe
        self.whole = NamedSharding(models.mesh, P())
        self.rows = NamedSharding(models.mesh, P(RULES["batch"]))
        empty = stored.empty if stored else Ids(*(x[0] for x in self._ids([""])))
        self.frozen, self.empty = models.frozen, self.put(empty)
        self.rope_of = cache(self._rope)

    def put(self, tree: Any) -> Any:
        """On every device, whole."""
        return replicate_to_mesh(tree, self.whole)

    def own_rows(self, batch: int) -> list[int]:
        """Which rows of a batch of that size lie on this host's devices."""
        return local_rows(self.rows, batch)

    def batch(self, host: HostBatch) -> Batch:
        """A global batch, of which `host` has at least the rows that lie here."""
        prompt = host.prompt or self._ids([self._recipe.prompted(c) for c in host.caption])
        reference: Any = None if host.low is None else (host.low, host.high)
        rows = (host.target, prompt, reference and Reference(*reference), host.focus)
        if self.rows.is_fully_addressable:
            return Batch(*jax.device_put(rows, self.rows))
        join = partial(global_from_local_rows, held=host.row, count=host.total, sharding=self.rows)
        return Batch(*jax.tree.map(join, rows))

    def rope(self, host: HostBatch) -> Rope:
        return self.rope_of(*host.size)

    def knobs(self, stage: Stage, at: int, host: HostBatch) -> Knobs:
        """The numbers of step `at` of a stage."""
        tokens = len(self.rope(host).cos) - self._recipe.text_length
        early = at < stage.early_steps
        values = {
            "learning_rate": learning_rate(stage, at),
            "shift": flow.shift(tokens, self._models.scheduler) if stage.shifted else 1.0,
            "guidance": stage.guidance,
            "text_dropout": stage.early_text_dropout if early else stage.text_dropout,
            "subject_dropout": stage.subject_dropout,
            "ema": stage.ema,
            "focus": stage.focus,
        }
        return Knobs(**self.put({name: np.float32(value) for name, value in values.items()}))

    def _ids(self, prompts: list[str]) -> Ids:
        assert self._models.tokenizers
        return self._models.tokenizers.ids(prompts)

    def _rope(self, height: int, width: int) -> Rope:
        pixels = self._models.vae.downscale * flow.PATCH
        ids = flow.position_ids(self._recipe.text_length, height // pixels, width // pixels)
        return self.put(rope_table(ids, self._models.frozen.transformer.config))
