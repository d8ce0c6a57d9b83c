"""Reports of a run: metrics as JSON lines, for TensorBoard and, if asked for, for wandb."""

import json
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ic_jax import multihost
from ic_jax.config import ConfigError
from ic_jax.files import atomic_write, json_text, named_in_errors, write_json
from ic_jax.sharding import gather_to_host
from train import flops
from train.event_file import EventFile
from train.noise_scale import noise_scale
from train.recipe import Recipe, Reporting
from train.step import Metrics

SIGMA_BINS = (0.0, 0.25, 0.5, 0.75, 1.0)


def open_report(recipe: Recipe, last_step: int) -> "Report | NullReport":
    """Return the report of a run that starts after `last_step`; only the first process writes."""
    if not multihost.is_first():
        return NullReport()
    write_json(recipe.out / "recipe.json", recipe.to_dict())
    return Report(recipe.out, last_step, recipe.reporting.wandb, recipe.to_dict())


def check_wandb(reporting: Reporting) -> None:
    """Raise ConfigError if wandb is asked for and not installed."""
    if reporting.wandb and find_spec("wandb") is None:
        raise ConfigError(
            f"reporting.wandb is {reporting.wandb!r}, which is not installed; "
            "pip install 'ic_jax[wandb]', or leave it empty"
        )


class Report:
    """Scalars by global step, appended to RUN/metrics.jsonl and RUN/tensorboard.

    A run that resumes at `last_step` first drops the lines of later steps, so that every step is
    reported once.
    """

    def __init__(self, run: Path, last_step: int, wandb_project: str, settings: dict[str, Any]):
        self._file = run / "metrics.jsonl"
        self._keep_until(last_step)
        self._lines = self._file.open("a", encoding="utf-8")
        self._events = EventFile(run / "tensorboard", last_step + 1)
        self._wandb = None
        if wandb_project:
            self._wandb = _wandb(run, wandb_project, settings)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step; those that are not finite are left out, as JSON has none."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        with named_in_errors(self._file):
            self._lines.write(json_text({"step": step, **values}) + "\n")
            self._lines.flush()
        for name, value in values.items():
            self._events.scalar(name, value, step)
        self._events.flush()
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show a picture in TensorBoard; `pixels` are uint8 [h, w, 3]."""
        self._events.picture(name, pixels, step)

    def close(self) -> None:
        """Close all files, each after an error of another as well."""
        with ExitStack() as stack:
            if self._wandb is not None:
                stack.callback(self._wandb.finish)
            stack.callback(self._events.close)
            stack.enter_context(named_in_errors(self._file))
            self._lines.close()  # writes what could not be written before

    def _keep_until(self, last_step: int) -> None:
        if not self._file.exists():
            return
        lines = []
        for line in self._file.read_text("utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= last_step:
                    lines.append(line + "\n")
            except (ValueError, TypeError, KeyError):  # a line cut short by a kill
                continue
        atomic_write(self._file, "".join(lines).encode())


def _wandb(run: Path, project: str, settings: dict[str, Any]) -> Any:
    """Return wandb's run, which has the same id after every start (RUN/wandb.txt)."""
    import wandb  # an extra, and slow to import

    file = run / "wandb.txt"
    known = file.read_text().strip() if file.exists() else None
    wandb_run = wandb.init(project=project, id=known, dir=str(run), config=settings, resume="allow")
    atomic_write(file, f"{wandb_run.id}\n".encode())
    return wandb_run


class NullReport:
    """Report of the processes other than the first: writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


def by_sigma(per_example_loss: np.ndarray, sigma: np.ndarray) -> dict[str, float]:
    """Return the mean loss in each bin of noise levels that has rows."""
    means = {}
    for low, high in pairwise(SIGMA_BINS):
        rows = (sigma >= low) & ((sigma < high) | (high == 1.0))
        if rows.any():
            means[f"loss/sigma {low:.2f}-{high:.2f}"] = float(per_example_loss[rows].mean())
    return means


class StepLog:
    """Metrics of the steps since the last summary."""

    def __init__(self) -> None:
        self.metrics: list[Metrics] = []
        self._samples, self._flops, self._start = 0, 0.0, time.perf_counter()

    def add(self, metrics: Metrics, samples: int, sample_flops: float) -> None:
        """Add a step, its number of samples, and the model FLOPs of a sample."""
        self.metrics.append(metrics)
        self._samples += samples
        self._flops += samples * sample_flops

    def summary(self) -> dict[str, float]:
        """Return the means over the finite steps, and the speed."""
        steps = gather_to_host(self.metrics)
        nonfinite = max(int(m.nonfinite_steps) for m in steps)
        speed = {"nonfinite steps": nonfinite, **self._speed(time.perf_counter() - self._start)}
        finite = [m for m in steps if m.nonfinite_steps == 0]
        if not finite:
            return {"loss": float("nan"), **speed}
        losses = np.concatenate([m.per_example_loss for m in finite])
        return {
            "loss": float(np.mean([m.loss for m in finite])),
            "gradient norm": float(np.mean([m.grad_norm for m in finite])),
            **noise_scale([m.noise for m in finite]),
            **speed,
            **by_sigma(losses, np.concatenate([m.sigma for m in finite])),
        }

    def _speed(self, seconds: float) -> dict[str, float]:
        """Return samples and model FLOPs per second, and what the device reports of its memory."""
        values = {
            "samples per second": self._samples / seconds,
            "model TFLOP per second": self._flops / seconds / 1e12,
        }
        utilisation = flops.utilisation(self._flops / seconds)
        if utilisation is not None:
            values["model FLOP utilisation"] = utilisation
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            values["peak memory GB"] = memory["peak_bytes_in_use"] / 1e9
        return values
