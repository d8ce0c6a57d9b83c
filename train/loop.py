"""The training loop: from a recipe's first step to its last, or on from where its last run
stopped."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ic_jax import multihost
from ic_jax.config import ConfigError
from ic_jax.files import write_json
from ic_jax.models.adapter import Adapter
from ic_jax.sharding import gather_to_host, shardings
from train import flops, stage_data
from train import step as steps
from train.checkpoints import Checkpoints
from train.data.batch_plan import BatchPlan
from train.data.characters import held_out
from train.data.dataset import Dataset
from train.data.loader import Cached, HostBatch, SkipCounter, batches
from train.data.pictures import CENTRED, Augment
from train.effect import ReferenceEffectMeter
from train.encoded_cache import Cache
from train.models import base_digests, load_models, trainable_metadata
from train.optimizer import learning_rate, optimizer
from train.preview import Preview
from train.recipe import Recipe, Stage
from train.report import NullReport, Report, by_sigma
from train.run_folder import StopAgreement, Stopped, StopRequest, owned
from train.step_inputs import StepInputs

Log = list[tuple[steps.Metrics, int, float]]  # metrics, samples and model FLOPs of each step


def train(recipe: Recipe) -> None:
    """Run all stages, resuming at the newest checkpoint.

    Raises:
        Stopped: on SIGTERM or SIGINT, after saving.
        FloatingPointError: too many steps in a row were not finite.
    """
    with owned(recipe.out), StopRequest() as stop:
        run = Run(recipe, stop)
        try:
            with jax.set_mesh(run.models.mesh):
                for name in recipe.stages:
                    run.stage(name)
            run.save()
            run.checkpoints.wait()
        finally:
            run.close()


class Run:
    """What lives as long as a run does."""

    def __init__(self, recipe: Recipe, stop: StopRequest):
        self.recipe = recipe
        if recipe.reporting.wandb and find_spec("wandb") is None:
            raise ConfigError(
                f"reporting.wandb is {recipe.reporting.wandb!r}, and wandb is not there; "
                "pip install 'ic_jax[wandb]', or leave it empty"
            )
        self.checkpoints = Checkpoints(recipe.out, recipe.saving)
        self.dataset = Dataset(recipe.data)
        stage_data.check_focus(recipe, self.dataset)
        self.held = held_out(self.dataset, recipe.holdout)
        # All of them now: a stage that cannot be drawn must not be found out days later.
        self.plans = list(stage_data.every(recipe, self.dataset, self.held))
        self.cache = self._cache()
        self.models = load_models(recipe)
        self.stop = StopAgreement(stop, self.models.mesh)
        self.inputs = StepInputs(recipe, self.models, self.cache)
        self.step = self.saved = self.checkpoints.latest or 0  # global, over all stages
        self.skips = SkipCounter()
        self.state = self._start()
        self.report = self._report()
        self.preview = Preview(recipe, self.models, self.dataset, self.held, self.cache)

    def stage(self, name: str) -> None:
        """Train through what is left of a stage."""
        recipe, inputs, stage = self.recipe, self.inputs, self.recipe.stages[name]
        first = recipe.first_steps()[name]
        start, end = self.step - first, stage.steps
        if start >= end:
            return
        program, meter = self._program(stage), self._meter(name)
        plan = stage_data.training(recipe, name, self.dataset, self.held)
        rows = inputs.local_rows(plan.batch)
        cell = self.models.vae.downscale if stage.focus else None
        found = self._batches(plan, Augment(), start, end, self.skips, rows, cell)
        quiet = None if multihost.is_first() else True  # None: where nobody looks
        bar = tqdm(found, desc=name, initial=start, total=end, unit="step", disable=quiet)
        seed, log, clock = inputs.replicate(np.int32(recipe.seed)), Log(), time.perf_counter()
        for at, host in zip(range(start, end), bar, strict=True):
            given = (
                inputs.batch(host),
                inputs.empty,
                inputs.rope(host),
                inputs.scalars(stage, at, host),
            )
            with jax.transfer_guard("disallow"):
                self.state, metrics = program(self.state, inputs.frozen, *given, seed)
            self.step = first + at + 1
            samples = stage.batch
            log.append((metrics, samples, samples * self._sample_flops(len(given[2].cos))))
            # No more than two steps ahead of the devices: a signal must not wait for a queue.
            if len(log) > 2:
                jax.block_until_ready(log[-3][0])

            last = at + 1 == end
            if self._due(recipe.reporting.every, last):
                values = self._summary(log, time.perf_counter() - clock)
                values["learning rate"] = learning_rate(stage, at)
                self.report.scalars(self.step, values)
                bar.set_postfix(loss=f"{values['loss']:.4f}")
            if meter and self._due(recipe.reporting.effect_every, last):
                self.report.scalars(self.step, meter.measure(self.state.params))
            if self._due(recipe.reporting.preview_every, last):
                self.report.picture(self.step, "preview", self.preview.draw(self.state, self.step))
            stopping = self.stop.wanted()
            if self._due(recipe.saving.every, last) or stopping:
                self.save()
            if stopping:
                self.checkpoints.wait()
                raise Stopped(f"stopped after step {self.step}; the same command goes on from it")
            if self._due(recipe.reporting.every, last):
                log, clock = Log(), time.perf_counter()

    def save(self) -> None:
        """Start saving the state, unless it is saved already."""
        if self.saved != self.step:
            counted = {"samples": asdict(self.skips)}
            self.checkpoints.save(self.step, self.state, self._run_metadata() | counted)
            self.saved = self.step

    def close(self) -> None:
        self.report.close()
        self.checkpoints.close()

    def _run_metadata(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        recipe, firsts = self.recipe, self.recipe.first_steps()
        done = {n: s.steps for n, s in recipe.stages.items() if firsts[n] + s.steps <= self.step}
        return {
            "seed": recipe.seed,
            "dtype": recipe.dtype,
            "holdout": recipe.holdout,
            "data": [shard["sha256"] for shard in self.dataset.card["shards"]],
            "cached": bool(recipe.cache),
            "text_length": recipe.text_length,
            "model": base_digests(recipe),
            **trainable_metadata(recipe, self.models.trained),
            "finished stages": done,
        }

    def _report(self) -> Report | NullReport:
        """The first host's reports and files; the others write checkpoints only."""
        recipe = self.recipe
        if not multihost.is_first():
            return NullReport()
        write_json(recipe.out / "recipe.json", recipe.to_dict())
        return Report(recipe.out, self.step, recipe.reporting.wandb, recipe.to_dict())

    def _cache(self) -> Cache | None:
        """The recipe's cache; DataError unless all of it is there and of this model and data."""
        if not self.recipe.cache:
            return None
        stored = Cache(self.recipe, self.dataset)
        for part in stored.parts(self.plans):
            part.check()
        return stored

    def _batches(
        self,
        plan: BatchPlan,
        augment: Augment,
        start: int,
        stop: int,
        skips: SkipCounter | None = None,
        rows: Sequence[int] | None = None,
        cell: int | None = None,
    ) -> Iterator[HostBatch]:
        siglip, stored = self.models.frozen.siglip, self.cache
        return batches(
            self.dataset,
            plan,
            augment,
            start=start,
            stop=stop,
            side=siglip.config.image_size if siglip else None,
            cell=cell,
            cached=Cached(stored.latents(plan), stored.captions) if stored else None,
            skips=skips,
            rows=rows,
        )

    def _meter(self, name: str) -> ReferenceEffectMeter | None:
        """None where there is nothing to measure."""
        if not stage_data.measures(self.recipe, self.held):
            return None
        plan = stage_data.measuring(self.recipe, name, self.dataset, self.held)
        # As many rows, whatever the parts that a batch is computed in.
        count = self.recipe.reporting.effect_batches * self.recipe.stages[name].accumulate
        return ReferenceEffectMeter(
            self.recipe,
            self.recipe.stages[name],
            self._batches(plan, CENTRED, 0, count),
            self.inputs,
        )

    def _start(self) -> steps.TrainState:
        """A fresh state, or the newest saved one."""
        stage, start = next(iter(self.recipe.stages.values())), steps.TrainState.start
        given: dict[str, Any] = {"optimizer": optimizer(stage), "ema": self.recipe.averages}
        shapes = jax.eval_shape(partial(start, **given), self.models.trained)
        places = shardings(shapes, self.models.mesh)
        if self.checkpoints.latest is None:
            program = jax.jit(start, static_argnames=tuple(given), out_shardings=places)
            return program(self.models.trained, **given)
        abstract = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
        )
        state = self.checkpoints.restore(abstract, self._run_metadata())
        self.skips = SkipCounter(**self.checkpoints.run_metadata(self.step)["samples"])
        return state

    def _program(self, stage: Stage) -> Callable:
        settings = {
            "optimizer": optimizer(stage),
            "timesteps": stage.timesteps,
            "accumulate": stage.accumulate,
            "remat": stage.remat,
            "dtype": jnp.dtype(self.recipe.dtype),
        }
        places = (shardings(self.state, self.models.mesh), None)
        program = jax.jit(
            steps.train_step,
            static_argnames=tuple(settings),
            donate_argnums=(0,),
            out_shardings=places,
        )
        return partial(program, **settings)

    def _due(self, every: int, last: bool) -> bool:
        """At every so many steps, and at the last one of a stage."""
        return bool(every) and (self.step % every == 0 or last)

    def _summary(self, log: Log, seconds: float) -> dict[str, float]:
        """Means since the last summary; FloatingPointError after too many bad steps."""
        found = gather_to_host([metrics for metrics, *_ in log])
        bad = max(int(metrics.nonfinite_steps) for metrics in found)
        if bad >= self.recipe.stop_after_bad:
            raise FloatingPointError(
                f"{bad} steps in a row up to step {self.step} had a loss or gradient that is not "
                "finite; lower the learning rate, or look at the data of those steps"
            )
        speed = {"bad": bad, **self._speed(log, seconds)}
        good = [m for m in found if m.nonfinite_steps == 0]
        if not good:
            return {"loss": float("nan"), **speed}
        rows, sigma = (
            np.concatenate([getattr(m, f) for m in good]) for f in ("per_example_loss", "sigma")
        )
        return {
            "loss": float(np.mean([m.loss for m in good])),
            "gradient norm": float(np.mean([m.grad_norm for m in good])),
            **speed,
            **by_sigma(rows, sigma),
        }

    def _sample_flops(self, tokens: int) -> float:
        """Model FLOPs of one training sample of so many tokens, text and image."""
        frozen, trained, text = self.models.frozen, self.models.trained, self.recipe.text_length
        flux, adapter = frozen.transformer.config, 0.0
        if isinstance(trained, Adapter):
            assert frozen.siglip is not None
            features = (frozen.siglip.config.image_size // frozen.siglip.config.patch_size) ** 2
            adapter = flops.adapter_forward(trained.config, flux, tokens - text, features)
        return flops.training_sample(flops.flux_forward(flux, tokens - text, text), adapter)

    def _speed(self, log: Log, seconds: float) -> dict[str, float]:
        """Samples and model FLOPs a second; utilisation and memory where the device tells."""
        per_second = sum(n for *_, n in log) / seconds
        values = {
            "samples per second": sum(samples for _, samples, _ in log) / seconds,
            "model TFLOP per second": per_second / 1e12,
        }
        share = flops.utilisation(per_second)
        if share is not None:
            values["model FLOP utilisation"] = share
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            values["peak memory GB"] = memory["peak_bytes_in_use"] / 1e9
        return values
