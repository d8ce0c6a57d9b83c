"""Inputs of a training step on the devices: frozen base, batches, rotary tables, scalars."""

from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import flow
from ic_jax.models.rope import Rope, rope_table
from ic_jax.sharding import RULES, global_from_local_rows, local_rows, replicate_to_mesh
from train import averages, flops
from train.data.loader import HostBatch
from train.encode import Ids, Reference, StepBatch, StepScalars
from train.recipe import Stage
from train.setup import Setup
from train.step_settings import numbers


class StepInputs:
    """Puts the inputs on the devices: rows are sharded over the mesh, the rest is replicated."""

    def __init__(self, run: Setup):
        self._models, self._recipe = run.models, run.recipe
        self._replicated = NamedSharding(run.models.mesh, P())
        self._rows = NamedSharding(run.models.mesh, P(RULES["batch"]))
        empty = run.cache.empty if run.cache else Ids(*(x[0] for x in self._ids([""])))
        self.frozen, self.empty = run.models.frozen, self.replicate(empty)
        self._seed = self.replicate(np.int32(run.recipe.seed))
        self._rope_of = cache(self._rope)
        self._averaged = averages.steps_before(run.recipe)

    def replicate(self, tree: Any) -> Any:
        """Copy arrays to every device."""
        return replicate_to_mesh(tree, self._replicated)

    def local_rows(self, batch: int) -> list[int]:
        """Return the rows of a global batch that lie on this process's devices."""
        return local_rows(self._rows, batch)

    def arguments(self, name: str, step_in_stage: int, host: HostBatch) -> tuple[Any, ...]:
        """Return the arguments of `train.step.train_step` after its state, in the stage `name`."""
        scalars = self.scalars(name, step_in_stage, host)
        return self.frozen, self.batch(host), self.empty, self.rope(host), scalars, self._seed

    def batch(self, host: HostBatch) -> StepBatch:
        """Return the global batch; `host`, in host memory, holds at least this process's rows."""
        prompt = host.prompt or self._ids([self._recipe.prompted(c) for c in host.caption])
        reference: Any = None if host.low is None else (host.low, host.high)
        references = reference and Reference(*reference)
        rows = (host.target, prompt, references, host.focus, host.regions)
        if self._rows.is_fully_addressable:
            return StepBatch(*jax.device_put(rows, self._rows))
        join = partial(
            global_from_local_rows, numbers=host.row, count=host.total, sharding=self._rows
        )
        return StepBatch(*jax.tree.map(join, rows))

    def rope(self, host: HostBatch) -> Rope:
        """Return the rotary table for the batch's size of pictures."""
        return self._rope_of(*host.size)

    def scalars(self, name: str, step_in_stage: int, host: HostBatch) -> StepScalars:
        """Return the numbers of a step of the stage `name`."""
        shift = flow.shift(self._image_tokens(host), self._models.scheduler)
        stage, averaged = self._recipe.stages[name], self._averaged[name]
        values = numbers(stage, step_in_stage, shift, averaged)
        return StepScalars(**self.replicate(values))

    def sample_flops(self, host: HostBatch) -> float:
        """Return the model FLOPs of one sample of a batch."""
        subjects = 1 if host.regions is None else host.regions.shape[1]
        return self._flops(self._image_tokens(host), subjects)

    def _flops(self, tokens: int, subjects: int) -> float:
        """Return the model FLOPs of one sample of so many tokens of its picture."""
        frozen, text = self._models.frozen, self._recipe.text_length
        siglip = frozen.siglip.config if frozen.siglip else None
        return flops.training_sample(
            frozen.transformer.config, tokens, text, self._models.adapter, siglip, subjects
        )

    def step_flops(self, stage: Stage) -> float:
        """Return the model FLOPs of a step of a stage, of square pictures."""
        pixels = self._models.vae.downscale * flow.PATCH
        return stage.batch * self._flops((stage.resolution // pixels) ** 2, stage.subjects)

    def _image_tokens(self, host: HostBatch) -> int:
        return len(self.rope(host).cos) - self._recipe.text_length

    def _ids(self, prompts: list[str]) -> Ids:
        assert self._models.tokenizers
        return self._models.tokenizers.ids(prompts)

    def _rope(self, height: int, width: int) -> Rope:
        pixels = self._models.vae.downscale * flow.PATCH
        ids = flow.position_ids(self._recipe.text_length, height // pixels, width // pixels)
        return self.replicate(rope_table(ids, self._models.frozen.transformer.config))
