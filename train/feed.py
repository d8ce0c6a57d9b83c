"""What a step is given, on the devices: the frozen base, batches, rotary tables, knobs."""

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import flow
from ic_jax.models.rope import Rope, rope_table
from train.data.loader import Batch as HostBatch
from train.models import Models
from train.optimizer import learning_rate
from train.recipe import Recipe, Stage
from train.step import Batch, Knobs


class Feed:
    """Puts things where they belong: rows spread over all devices, everything else on each."""

    def __init__(self, recipe: Recipe, models: Models):
        self._models, self._text_length = models, recipe.text_length
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        self.whole, self.rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        self.frozen, self.empty = self.put((models.frozen, models.empty))
        self.rope_of = cache(self._rope)

    def put(self, tree: Any) -> Any:
        """On every device, whole."""
        return jax.device_put(tree, self.whole)

    def batch(self, host: HostBatch) -> Batch:
        clip_ids, t5_ids = self._models.ids(host.caption)
        rows = (host.target, host.low, host.high, clip_ids, t5_ids)
        return Batch(*jax.device_put(rows, self.rows))

    def rope(self, host: HostBatch) -> Rope:
        return self.rope_of(*host.target.shape[1:3])

    def knobs(self, stage: Stage, at: int, host: HostBatch) -> Knobs:
        """The numbers of step `at` of a stage."""
        tokens = len(self.rope(host).cos) - self._text_length
        early = at < stage.early_steps
        values = {
            "learning_rate": learning_rate(stage, at),
            "shift": flow.shift(tokens, self._models.scheduler) if stage.shifted else 1.0,
            "guidance": stage.guidance,
            "text_dropout": stage.early_text_dropout if early else stage.text_dropout,
            "subject_dropout": stage.subject_dropout,
            "ema": stage.ema,
        }
        return Knobs(**self.put({name: np.float32(value) for name, value in values.items()}))

    def _rope(self, height: int, width: int) -> Rope:
        pixels = self._models.frozen.vae.config.downscale * flow.PATCH
        ids = flow.position_ids(self._text_length, height // pixels, width // pixels)
        return self.put(rope_table(ids, self._models.frozen.transformer.config))
