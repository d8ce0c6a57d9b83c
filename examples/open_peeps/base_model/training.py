"""Training of a complete base model, part after part, each stored as soon as it is trained."""

import dataclasses
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from examples.open_peeps.base_model import word_tokenizer
from examples.open_peeps.base_model.autoencoder import train_vae
from examples.open_peeps.base_model.config import BaseModelConfig
from examples.open_peeps.base_model.fit import FitOptions
from examples.open_peeps.base_model.flux import TextToImage, fresh_flux, train_base
from examples.open_peeps.base_model.renders import Renders, render_references, render_views
from examples.open_peeps.base_model.text_encoders import read_neighbours, text_encoders
from examples.open_peeps.base_model.vision import train_dinov2, train_siglip
from examples.open_peeps.world.worlds import WORLDS
from ic_jax.config import ConfigError, SamplingConfig, SchedulerConfig
from ic_jax.files import locked, write_json
from ic_jax.models.vae import Vae
from ic_jax.weights import loading, model_folder

FIGURES = "base_model.json"


def train_base_model(
    out: Path, config: BaseModelConfig, *, overwrite: bool = False, workers: int | None = None
) -> dict[str, Any]:
    """Train and write a MODEL folder without adapter; return the losses and seconds of each part.

    Each finished part is kept in OUT.parts/ as a MODEL of its own, together with the figures, and
    is not trained again.

    Args:
        workers: processes that render pictures; by default one per core.

    Raises:
        ConfigError: OUT.parts/ was trained with another config.
        FileExistsError: `out` exists, or another process is training.
    """
    parts = out.with_name(out.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    with locked(parts, f"{parts}: another process is training there"):
        modules, files = _Parts(parts, config, workers).all()
    write_model(out, modules, files, config.sampling, overwrite=overwrite)
    return json.loads((parts / FIGURES).read_text())


def write_model(
    out: Path,
    modules: Mapping[str, Any],
    files: Mapping[str, word_tokenizer.Files],
    sampling: SamplingConfig,
    *,
    dtype: Any = None,
    overwrite: bool = False,
) -> None:
    """Write a MODEL folder of modules by component, cast to `dtype` if one is given."""
    with model_folder.create(out, overwrite=overwrite) as writer:
        for component, module in modules.items():
            loading.write_component(writer, component, module, dtype)
        writer.add_config("scheduler", SchedulerConfig().to_dict())
        writer.add_config("sampling", sampling.to_dict())
        for component, texts in files.items():
            for name, text in texts.items():
                writer.add_file(component, name, text.encode())


class _Parts:
    """Parts of a base model: loaded from an earlier run, or trained and stored."""

    def __init__(self, folder: Path, config: BaseModelConfig, workers: int | None):
        self.folder, self.config, self.workers = folder, config, workers
        self.figures = _read_figures(folder, config)
        self.files, *self.vocabularies = word_tokenizer.tokenizers(WORLDS[config.world].words())

    def all(self) -> tuple[dict[str, Any], dict[str, word_tokenizer.Files]]:
        """Return modules by component, and the tokenizers' files."""
        (vae,) = self._stored(("vae",), self._vae)
        base = self._stored(("transformer", "t5", "clip"), lambda: self._base(vae))
        (siglip,) = self._stored(("siglip",), self._siglip)
        (dinov2,) = self._stored(("dinov2",), self._dinov2)
        modules = {"vae": vae, "siglip": siglip, "dinov2": dinov2}
        modules |= dict(zip(("transformer", "t5", "clip"), base, strict=True))
        return modules, self.files

    def _options(self, name: str, steps: int, batch: int, rate: float) -> FitOptions:
        return FitOptions(steps, batch, rate, self.config.seed, self.folder / f"{name}.state")

    def _vae(self) -> tuple[tuple, dict[str, Any]]:
        c = self.config
        options = self._options("vae", c.vae_steps, c.vae_batch, c.vae_rate)
        vae, figures = train_vae(c, self.views, options)
        return (vae,), figures

    def _base(self, vae: Vae) -> tuple[tuple, dict[str, Any]]:
        c = self.config
        options = self._options("base", c.base_steps, c.base_batch, c.base_rate)
        t5_size, clip_size = self.vocabularies
        t5, clip = text_encoders(c.t5(t5_size), c.clip(clip_size), c.seed)
        if c.train_text:
            read_neighbours(t5)
        start = TextToImage(fresh_flux(c.flux, c.seed), t5, clip)
        return train_base(c, self.views, vae, start, self.files, options)

    def _siglip(self) -> tuple[tuple, dict[str, Any]]:
        c = self.config
        options = self._options("siglip", c.siglip_steps, c.encoder_batch, c.encoder_rate)
        clip = c.clip(self.vocabularies[1])
        siglip, figures = train_siglip(c, self.references, clip, self.files, options)
        return (siglip,), figures

    def _dinov2(self) -> tuple[tuple, dict[str, Any]]:
        c = self.config
        options = self._options("dinov2", c.dinov2_steps, c.encoder_batch, c.encoder_rate)
        dinov2, figures = train_dinov2(c.dinov2, self.references.pixels, options)
        return (dinov2,), figures

    @cached_property
    def views(self) -> Renders:
        c = self.config
        return render_views(c.world, c.pictures, c.side, c.seed, self.workers)

    @cached_property
    def references(self) -> Renders:
        c = self.config
        return render_references(c.world, c.subjects, c.side, c.seed, self.workers)

    def _stored(self, components: tuple[str, ...], train: Callable[[], tuple]) -> tuple:
        """Load the components if they are stored; otherwise train and store them."""
        if all((self.folder / component).exists() for component in components):
            return tuple(loading.load_component(self.folder / c, c) for c in components)
        start = time.perf_counter()
        modules, figures = train()
        self.figures["+".join(components)] = figures | {
            "seconds": round(time.perf_counter() - start),
            "parameters": sum(x.size for x in jax.tree.leaves(modules)),
        }
        write_json(self.folder / FIGURES, self.figures)
        for component, module in zip(components, modules, strict=True):
            with model_folder.create(self.folder / component, overwrite=True) as writer:
                loading.write_component(writer, component, module)
        for checkpoint in self.folder.glob("*.state"):  # of these components, which are stored now
            shutil.rmtree(checkpoint)
        return tuple(modules)


def _read_figures(parts: Path, config: BaseModelConfig) -> dict[str, Any]:
    """Return the figures of the parts so far; refuse parts of another config."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples as JSON's lists
    remedy = "remove that folder, or name another MODEL"
    if not (parts / FIGURES).exists():
        if any(parts.iterdir()):
            raise ConfigError(f"{parts}: holds no {FIGURES}, as earlier versions left it; {remedy}")
        figures = {"config": values, "jax": jax.__version__, "processor": platform.machine()}
        write_json(parts / FIGURES, figures)
    figures = json.loads((parts / FIGURES).read_text())
    for name, value in values.items():
        if (stored := figures["config"].get(name)) != value:
            raise ConfigError(f"{parts}: was trained with {name} {stored}, not {value}; {remedy}")
    return figures
