"""python -m train foundations OUT: a small MODEL trained from random weights, without adapter."""

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax

from ic_jax import checkpoint, cli, model_folder
from ic_jax.config import ConfigError, SchedulerConfig
from train.foundations import words
from train.foundations.autoencoder import train_vae
from train.foundations.base import train_base
from train.foundations.encoders import dinov2, siglip, text_encoders
from train.foundations.fit import Fit
from train.foundations.pictures import Drawn, draw
from train.foundations.settings import Settings, change

FACTS = "foundations.json"


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code, see `ic_jax.cli.run`."""
    parser = argparse.ArgumentParser(prog="python -m train foundations", description=__doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="MODEL folder to write")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    given = parser.parse_args(arguments)
    return cli.run(
        lambda: foundations(given.out, change(Settings(), given.set), overwrite=given.overwrite),
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
    facts, seed = _facts(parts, settings), settings.seed
    files, *counts = words.tokenizers()
    t5, clip = text_encoders(settings.t5(counts[0]), settings.clip(counts[1]), seed)

    @cache  # drawn when they are first needed
    def pictures() -> Drawn:
        return draw(settings.pictures, settings.side, seed, workers)

    def vae_part() -> tuple[Any, dict[str, Any]]:
        fit = Fit(settings.vae_steps, settings.vae_batch, settings.vae_rate, seed)
        return train_vae(settings.vae, pictures().pixels, settings.kl_weight, fit)

    vae = _trained(parts, "vae", vae_part, facts)

    def base_part() -> tuple[Any, dict[str, Any]]:
        fit = Fit(settings.base_steps, settings.base_batch, settings.base_rate, seed)
        return train_base(settings, pictures(), vae, (t5, clip), files, fit)

    transformer = _trained(parts, "transformer", base_part, facts)
    modules = {
        "transformer": transformer,
        "vae": vae,
        "t5": t5,
        "clip": clip,
        "siglip": siglip(settings.siglip, seed),
        "dinov2": dinov2(settings.dinov2, seed),
    }
    with model_folder.create(out, overwrite=overwrite) as writer:
        for kind, module in modules.items():
            checkpoint.write_component(writer, kind, module)
        writer.add_config("scheduler", SchedulerConfig().to_dict())
        for kind, text in files.items():
            writer.add_file(kind, "tokenizer.json", text.encode())
    return facts


def _trained(parts: Path, kind: str, train: Callable[[], tuple], facts: dict[str, Any]) -> Any:
    """A part from an earlier run, or trained now and kept."""
    if (parts / kind).exists():
        return checkpoint.load_component(parts / kind, kind)
    start = time.perf_counter()
    module, found = train()
    facts[kind] = found | {
        "seconds": round(time.perf_counter() - start),
        "parameters": sum(x.size for x in jax.tree.leaves(module)),
    }
    with model_folder.create(parts / kind) as writer:
        checkpoint.write_component(writer, kind, module)
    (parts / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    return module


def _facts(parts: Path, settings: Settings) -> dict[str, Any]:
    """What is known of the parts so far; ConfigError if they were made with other settings."""
    # As JSON has it, where a tuple is a list.
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    if not (parts / FACTS).exists():
        return {"settings": values, "jax": jax.__version__, "processor": platform.machine()}
    facts = json.loads((parts / FACTS).read_text())
    for name, value in values.items():
        if facts["settings"].get(name) != value:
            raise ConfigError(
                f"{parts}: was made with {name} {facts['settings'].get(name)}, now it is {value}; "
                "remove that folder, or name another OUT"
            )
    return facts
