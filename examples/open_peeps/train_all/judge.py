"""After training: sampling settings chosen on validation people, evaluation, contact sheets."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from examples.open_peeps.base_model.fit import Interrupted
from examples.open_peeps.evaluation import generation, pairs, scores
from examples.open_peeps.evaluation.sheet import contact_sheet
from examples.open_peeps.evaluation.triples import held_out_triples
from examples.open_peeps.train_all.config import SmallModelConfig
from examples.open_peeps.train_all.tasks import Modules
from examples.open_peeps.train_all.work import Work
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline
from ic_jax.cli import say
from ic_jax.files import write_json
from ic_jax.measuring.origin import origin
from ic_jax.weights import loading

STEPS = ("settings", "evaluation")  # after the stages
GUIDANCE, SUBJECT_SCALES = (1.5, 2.0, 3.0), (1.0, 1.5)
FIRST_VALIDATION = 600  # of the held-out people: none of them is in an evaluation
SHOWN = 8  # people on a contact sheet


def write_and_evaluate(
    out: Path,
    work: Work,
    modules: Modules,
    config: SmallModelConfig,
    write: Callable[..., None],
    stop: Callable[[], bool],
) -> None:
    """Write the MODEL folder `out`, and OUT.evaluation with scores and contact sheets.

    Raises:
        Interrupted: `stop` asks for it between two rows of pictures.
    """
    if not out.exists() or "settings" not in work.done:
        write(out, modules, sampling=config.sampling, overwrite=True)
    if "settings" not in work.done:
        chosen = choose(out, config, stop)
        write(out, modules, sampling=replace(config.sampling, **chosen), overwrite=True)
        work.finish("settings", chosen)
    if "evaluation" not in work.done:
        work.finish("evaluation", evaluate(out, config, stop))


def choose(model: Path, config: SmallModelConfig, stop: Callable[[], bool]) -> dict[str, Any]:
    """Return the sampling settings that score best on validation people."""
    pipe = InstantCharacterPipeline(loading.load_model(model, config.dtype))
    triples = held_out_triples("peeps", "known parts", config.validation, FIRST_VALIDATION)
    pictures = {}
    for guidance, scale in product(GUIDANCE, SUBJECT_SCALES):
        if stop():
            raise Interrupted("the choice of sampling settings")
        pipe.sampling = replace(pipe.sampling, true_cfg_scale=guidance, subject_scale=scale)
        pictures[guidance, scale] = generation.generate(pipe, triples, 0, name="settings")
    rates = scores.score_all({str(k): v for k, v in pictures.items()}, triples)

    def score(key: tuple[float, float]) -> float:
        of = rates[str(key)]
        return of["identity"] + of["face"] + of["body"]

    guidance, scale = max(pictures, key=score)
    say(f"settings: true CFG {guidance}, subject scale {scale}")
    return {"true_cfg_scale": guidance, "subject_scale": scale}


def evaluate(model: Path, config: SmallModelConfig, stop: Callable[[], bool]) -> dict[str, Any]:
    """Score held-out people with the evaluation's own rows; write figures and contact sheets."""
    start = time.monotonic()
    loaded = loading.load_model(model, config.dtype)
    pipe = InstantCharacterPipeline(loaded)
    folder = model.with_name(model.name + ".evaluation")
    folder.mkdir(exist_ok=True)
    figures: dict[str, Any] = {}
    for people in WORLDS["peeps"].held_out:
        if stop():
            raise Interrupted("the evaluation")
        triples = held_out_triples("peeps", people, config.triples)
        rows = {f"seed {seed}": generation.generate(pipe, triples, seed) for seed in config.seeds}
        rows["no subject"] = generation.generate(pipe, triples, config.seeds[0], subject=False)
        rates = scores.score_all(rows, triples)
        figures[people] = {name: scores.spread([rates[name]]) for name in rows}
        say(f"\n{people}, {len(triples)} people, percent\n{scores.table(figures[people])}")
        sheet = contact_sheet(triples[:SHOWN], rows, cell=192)
        sheet.save(folder / f"{people.replace(' ', '-')}.png")
    figures["two people"] = pairs.evaluate(pipe, config.triples, config.seeds)
    figures["conditions"] = {"triples": config.triples, **origin("jax", "flax")}
    write_json(folder / "evaluation.json", json.loads(json.dumps(figures)))
    return {"seconds": round(time.monotonic() - start, 1)}
