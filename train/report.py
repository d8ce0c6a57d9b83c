"""What a run reports: JSON lines, TensorBoard files and, if asked for, wandb."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from ic_jax.files import atomic_write

SIGMA_BINS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Report:
    """Scalars by global step, appended to RUN/metrics.jsonl and RUN/tensorboard.

    A resumed run goes on from its checkpoint: lines of the run before it that speak of later
    steps are dropped, so that every step stands there once.
    """

    def __init__(self, run: Path, last_step: int, wandb_project: str, settings: dict[str, Any]):
        self._file = run / "metrics.jsonl"
        self._keep_until(last_step)
        self._lines = self._file.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=last_step + 1)
        self._wandb = None
        if wandb_project:
            self._wandb = _wandb(run, wandb_project, settings)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """pixels: uint8 [h, w, 3]."""
        self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._lines.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _keep_until(self, last_step: int) -> None:
        if not self._file.exists():
            return
        kept = []
        for line in self._file.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= last_step:
                    kept.append(line + "\n")
            except ValueError:  # cut by a kill
                continue
        atomic_write(self._file, "".join(kept).encode())


def _wandb(run: Path, project: str, settings: dict[str, Any]) -> Any:
    """wandb's run: the same one every time, whose id stands in RUN/wandb.txt."""
    import wandb  # an extra: nobody else pays for importing it

    file = run / "wandb.txt"
    known = file.read_text().strip() if file.exists() else None
    found = wandb.init(project=project, id=known, dir=str(run), config=settings, resume="allow")
    file.write_text(found.id + "\n")
    return found


class NullReport:
    """What hosts other than the first report to."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


def by_sigma(per_example_loss: np.ndarray, sigma: np.ndarray) -> dict[str, float]:
    """Mean loss of the rows in each bin of noise levels; bins without rows are left out."""
    found = {}
    for low, high in pairwise(SIGMA_BINS):
        rows = (sigma >= low) & ((sigma < high) | (high == 1.0))
        if rows.any():
            found[f"loss/sigma {low:.2f}-{high:.2f}"] = float(per_example_loss[rows].mean())
    return found
