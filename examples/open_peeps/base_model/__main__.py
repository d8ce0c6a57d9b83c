"""python -m train foundations OUT: a small MODEL trained from random weights, without adapter."""

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from examples.open_peeps.base_model import word_tokenizer
from examples.open_peeps.base_model.autoencoder import train_vae
from examples.open_peeps.base_model.fit import Fit
from examples.open_peeps.base_model.flux import Base, fresh_flux, train_base
from examples.open_peeps.base_model.pictures import Drawn, draw, draw_subjects
from examples.open_peeps.base_model.settings import PEEPS, SMALL, Settings, change
from examples.open_peeps.base_model.text_encoders import read_neighbours, text_encoders
from examples.open_peeps.base_model.vision import train_dinov2, train_siglip
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import cli
from ic_jax.config import ConfigError, SchedulerConfig
from ic_jax.files import locked, write_json
from ic_jax.models.vae import Vae
from ic_jax.weights import loading, model_folder

FACTS = "foundations.json"
PRESETS = {"small": SMALL, "peeps": PEEPS}


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code, see `ic_jax.cli.run`."""
    parser = argparse.ArgumentParser(prog="python -m train foundations", description=__doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="MODEL folder to write")
    parser.add_argument(
        "--world", choices=PRESETS, default="small", help="what there is to draw (small)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    given = parser.parse_args(arguments)
    return cli.run(
        lambda: foundations(
            given.out, change(PRESETS[given.world], given.set), overwrite=given.overwrite
        ),
        debug=given.debug,
    )


def foundations(
    out: Path, settings: Settings, *, overwrite: bool = False, workers: int | None = None
) -> dict[str, Any]:
    """Train and write everything; returns losses and seconds, which OUT.parts/ keeps as well.

    Each trained part is kept in OUT.parts/ as a MODEL of its own, and not trained again.

    Args:
        workers: processes that draw pictures; by default one per core.
    """
    parts = out.with_name(out.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    with locked(parts, f"{parts}: another process is training there"):
        modules, files = _Parts(parts, settings, workers).all()
    with model_folder.create(out, overwrite=overwrite) as writer:
        for kind, module in modules.items():
            loading.write_component(writer, kind, module)
        writer.add_config("scheduler", SchedulerConfig().to_dict())
        writer.add_config("sampling", settings.sampling.to_dict())
        for kind, texts in files.items():
            for name, text in texts.items():
                writer.add_file(kind, name, text.encode())
    return json.loads((parts / FACTS).read_text())


class _Parts:
    """The parts of a model: from an earlier run, or trained now and kept."""

    def __init__(self, folder: Path, settings: Settings, workers: int | None):
        self.folder, self.settings, self.workers = folder, settings, workers
        self.facts = _facts(folder, settings)
        self.files, *self.words = word_tokenizer.tokenizers(WORLDS[settings.world].words())

    def all(self) -> tuple[dict[str, Any], dict[str, word_tokenizer.Files]]:
        """Modules by component, and the tokenizers' files."""
        (vae,) = self._kept(("vae",), self._vae)
        base = self._kept(("transformer", "t5", "clip"), lambda: self._base(vae))
        (siglip,) = self._kept(("siglip",), self._siglip)
        (dinov2,) = self._kept(("dinov2",), self._dinov2)
        modules = {"vae": vae, "siglip": siglip, "dinov2": dinov2}
        modules |= dict(zip(("transformer", "t5", "clip"), base, strict=True))
        return modules, self.files

    def _fit(self, name: str, steps: int, batch: int, rate: float) -> Fit:
        return Fit(steps, batch, rate, self.settings.seed, self.folder / f"{name}.npz")

    def _vae(self) -> tuple[tuple, dict[str, Any]]:
        s = self.settings
        fit = self._fit("vae", s.vae_steps, s.vae_batch, s.vae_rate)
        vae, found = train_vae(s, self.pictures, fit)
        return (vae,), found

    def _base(self, vae: Vae) -> tuple[tuple, dict[str, Any]]:
        s = self.settings
        fit = self._fit("base", s.base_steps, s.base_batch, s.base_rate)
        t5_words, clip_words = self.words
        t5, clip = text_encoders(s.t5(t5_words), s.clip(clip_words), s.seed)
        if s.text_learnt:
            read_neighbours(t5)
        start = Base(fresh_flux(s.flux, s.seed), t5, clip)
        return train_base(s, self.pictures, vae, start, self.files, fit)

    def _siglip(self) -> tuple[tuple, dict[str, Any]]:
        s = self.settings
        fit = self._fit("siglip", s.siglip_steps, s.encoder_batch, s.encoder_rate)
        clip = s.clip(self.words[1])
        siglip, found = train_siglip(s, self.subjects, clip, self.files, fit)
        return (siglip,), found

    def _dinov2(self) -> tuple[tuple, dict[str, Any]]:
        s = self.settings
        fit = self._fit("dinov2", s.dinov2_steps, s.encoder_batch, s.encoder_rate)
        dinov2, found = train_dinov2(s.dinov2, self.subjects.pixels, fit)
        return (dinov2,), found

    @cached_property
    def pictures(self) -> Drawn:
        s = self.settings
        return draw(s.world, s.pictures, s.side, s.seed, self.workers)

    @cached_property
    def subjects(self) -> Drawn:
        s = self.settings
        return draw_subjects(s.world, s.subjects, s.side, s.seed, self.workers)

    def _kept(self, kinds: tuple[str, ...], train: Callable[[], tuple]) -> tuple:
        if all((self.folder / kind).exists() for kind in kinds):
            return tuple(loading.load_component(self.folder / kind, kind) for kind in kinds)
        start = time.perf_counter()
        modules, found = train()
        self.facts["+".join(kinds)] = found | {
            "seconds": round(time.perf_counter() - start),
            "parameters": sum(x.size for x in jax.tree.leaves(modules)),
        }
        write_json(self.folder / FACTS, self.facts)
        for kind, module in zip(kinds, modules, strict=True):
            with model_folder.create(self.folder / kind, overwrite=True) as writer:
                loading.write_component(writer, kind, module)
        for state in self.folder.glob("*.npz"):  # the part's own, which is safe now
            state.unlink()
        return tuple(modules)


def _facts(parts: Path, settings: Settings) -> dict[str, Any]:
    """What is known of the parts so far; ConfigError if they were made with other settings."""
    # As JSON has it, where a tuple is a list.
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    if not (parts / FACTS).exists():
        facts = {"settings": values, "jax": jax.__version__, "processor": platform.machine()}
        write_json(parts / FACTS, facts)
    facts = json.loads((parts / FACTS).read_text())
    for name, value in values.items():
        if facts["settings"].get(name) != value:
            raise ConfigError(
                f"{parts}: was made with {name} {facts['settings'].get(name)}, now it is {value}; "
                "remove that folder, or name another OUT"
            )
    return facts
