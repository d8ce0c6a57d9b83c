"""What the commands of the suite are given: models, pictures, recipes, a finished run."""

import re
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from ic_jax.weights.lora.delta import LoraDelta
from ic_jax.weights.lora.writing import write_lora
from tests.conftest import from_torch
from tests.data_source import source
from tests.faults.processes import started
from tests.toy import write_data, write_model
from train.checkpoints import Checkpoints
from train.recipe import Saving

RECIPE = """
model = "{model}"
data = "{data}"
out = "{out}/run"
{cache}
dtype = "float32"
text_length = 16
holdout = 0.6
saving.every = 1
saving.keep = 4
reporting.every = 1
reporting.effect_every = 0
reporting.preview_every = 0
stage1.steps = 2
stage1.batch = 2
stage1.resolution = 32
stage1.warmup = 1
stage2.steps = 2
stage2.batch = 2
stage2.resolution = 32
stage2.warmup = 1
stage3.steps = 2
stage3.batch = 2
stage3.resolution = 32
stage3.warmup = 1
"""
# A LoRA's step on a cache is the smallest program to trace.
LORA = 'lora.rank = 2\nlora.targets = ["attn.to_q"]\n'


class Unmeasured(Exception):
    """Raised where a command fails undisturbed, which is no outcome of a trial."""


class World:
    """Inputs, made when they are first asked for; no trial changes them."""

    def __init__(self, folder: Path):
        """Take an empty folder for them."""
        self.folder = folder

    @cached_property
    def model(self) -> Path:
        """MODEL folder of random weights."""
        return write_model(self.folder / "model")

    @cached_property
    def converted(self) -> Path:
        """MODEL folder of the golden model."""
        return from_torch(self.folder / "converted")

    @cached_property
    def data(self) -> Path:
        """Prepared data set."""
        return write_data(self.folder)

    @cached_property
    def pictures(self) -> Path:
        """List of 96 pictures."""
        return source(self.folder / "pictures", characters=32, views=5)

    @property
    def picture(self) -> Path:
        """Picture of a character."""
        return self.data.parent / "source" / "0-0.png"

    @cached_property
    def lora(self) -> Path:
        """LoRA file of one linear map."""
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal(shape, np.float32) for shape in ((2, 32), (32, 2)))
        module = "transformer_blocks.0.attn.to_q"
        file = self.folder / "lora.safetensors"
        write_lora(file, {("transformer", module): LoraDelta(a, b, 1.0)}, np.dtype("float32"))
        return file

    @cached_property
    def run(self) -> Path:
        """Folder of a finished run."""
        out = self.folder / "finished"
        out.mkdir()
        self._train(self.recipe(out))
        return out / "run"

    @cached_property
    def cache(self) -> Path:
        """Encoded cache of the data set, for a LoRA."""
        folder = self.folder / "cache"
        self._train("cache", self.recipe(folder, cache=folder, keys=LORA))
        return folder

    def _train(self, *arguments: Path | str) -> None:
        log = self.folder / "train.log"
        with started("train.commands", [*map(str, arguments)], log) as process:
            ended = process.end()
        if ended.code:
            raise Unmeasured(ended.said)

    def recipe(self, out: Path, cache: Path | None = None, keys: str = "") -> Path:
        """Write a recipe beside a folder, for a run in it; `keys` are more lines."""
        line = f'cache = "{cache}"' if cache else ""
        file = out.with_name(f"{out.name}.toml")
        text = RECIPE.format(model=self.model, data=self.data, out=out, cache=line)
        file.write_text(text + keys)
        return file

    @staticmethod
    def state(run: Path) -> dict[str, np.ndarray]:
        """Return every array of a run's newest checkpoint by name."""
        reader = Checkpoints(run, Saving(), read_only=True)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        arrays = {}
        step = reader.latest
        assert step is not None, f"{run} has no checkpoint"
        for name, text in reader.run_metadata(step)["arrays"].items():
            dtype, shape = re.fullmatch(r"(\w+)\[(.*)\]", text).groups()  # type: ignore[union-attr]
            sizes = [int(size) for size in shape.split(",") if size]
            arrays[name] = jax.ShapeDtypeStruct(sizes, dtype, sharding=here)
        reader.close()
        folder = run / "checkpoints" / str(step) / "state"
        restored = ocp.StandardCheckpointer().restore(folder.absolute(), arrays)
        return {name: np.asarray(array) for name, array in restored.items()}
