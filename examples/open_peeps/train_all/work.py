"""Work folder of a run: what is done, finished parts, and the state of the stage in training.

    OUT.work/progress.json   configuration, and figures of the finished stages
    OUT.work/parts/STAGE/    parameters of what a finished stage trained, float32
    OUT.work/STAGE.state/    state of the stage in training
    OUT.work/data/           drawn pictures, which another machine draws again

No file but those of `data` has more than 15 MiB. All but `data` is what another machine needs to
go on.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax

from examples.open_peeps.base_model import fit_state
from examples.open_peeps.train_all.config import SmallModelConfig
from examples.open_peeps.train_all.tasks import Modules, Tasks
from ic_jax.config import ConfigError
from ic_jax.files import write_json


class Work:
    """Work folder of one run."""

    def __init__(self, folder: Path, config: SmallModelConfig):
        """Open the folder, or begin it.

        Raises:
            ConfigError: it was begun with another configuration.
        """
        self.folder, self.data, self.config = folder, folder / "data", config
        self._file = folder / "progress.json"
        settings = json.loads(json.dumps(dataclasses.asdict(config)))
        self._progress: dict[str, Any] = {"settings": settings, "chunks": 0, "done": {}}
        if not self._file.exists():
            write_json(self._file, self._progress)
        self._progress = json.loads(self._file.read_text())
        for name, value in settings.items():
            if (was := self._progress["settings"].get(name)) != value:
                raise ConfigError(
                    f"{folder}: was begun with {name} {was}, not {value}; give the same, or "
                    "another OUT"
                )

    @property
    def done(self) -> dict[str, Any]:
        """Figures of the finished stages, by name."""
        return self._progress["done"]

    @property
    def chunks(self) -> int:
        """Number of chunks that the data has for good; 0 before drawing has ended."""
        return self._progress["chunks"]

    def keep_chunks(self, count: int) -> None:
        """Note the number of chunks that the data has for good."""
        self._progress["chunks"] = count
        write_json(self._file, self._progress)

    def state(self, stage: str) -> Path:
        """Return the folder of a stage's state."""
        return self.folder / f"{stage}.state"

    def finish(self, stage: str, figures: dict[str, Any], modules: Modules | None = None) -> None:
        """Store what a stage has trained, and note that it is done."""
        if modules:
            (self.folder / "parts").mkdir(exist_ok=True)
            fit_state.save(self._part(stage), modules, [], 0.0)
        self._progress["done"][stage] = figures
        write_json(self._file, self._progress)
        shutil.rmtree(self.state(stage), ignore_errors=True)

    def load(self, tasks: Tasks) -> Modules:
        """Load the components that are trained, each as its last stage left it."""
        modules: Modules = {}
        for stage, task in tasks.by_stage.items():
            if stage in self.done:
                trained = jax.eval_shape(lambda task=task: task.finish(task.start()))
                modules |= fit_state.restore(self._part(stage), trained)[0]
        if "vae" in modules:
            scale = {k: self.done["vae"][k] for k in ("shift_factor", "scaling_factor")}
            modules["vae"].config = dataclasses.replace(modules["vae"].config, **scale)
        return modules

    def _part(self, stage: str) -> Path:
        return self.folder / "parts" / stage
