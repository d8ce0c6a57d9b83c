"""Prediction of a run by arithmetic: work of each stage's compiled step, and what fits."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from examples.open_peeps.train_all.config import ADAPTER_STAGES, SmallModelConfig
from examples.open_peeps.train_all.programs import planned_step
from examples.open_peeps.train_all.run import prepare
from examples.open_peeps.world import draw
from ic_jax.cli import say
from ic_jax.devices import Chip
from ic_jax.files import write_json
from ic_jax.measuring.origin import origin
from ic_jax.planning.compile_plan import PlannedProgram, compile_report
from ic_jax.planning.topologies import topology_devices
from ic_jax.sharding import make_mesh, parse

SHARE = 0.25  # of the peaks of arithmetic and of memory that a small model is taken to reach
CORES = 16  # that draw beside the accelerator
PARTS = ("state", "frozen", "batch", "key", "rate")


def report(
    config: SmallModelConfig, topology: str | None, minutes: Sequence[float], file: Path | None
) -> None:
    """Print the work of each stage's step and what fits the minutes; write it as JSON if asked.

    Raises:
        ShardingError: there is no such topology.
    """
    devices = topology_devices(topology)[:1]
    chip = Chip.of(devices[0])
    _, tasks = prepare(config)
    mesh = make_mesh(parse("data=1"), devices)
    rate = drawing_rate(config)
    figures: dict[str, Any] = {**origin("jax", "jaxlib", "flax"), "share of peak": SHARE}
    figures["scenes drawn per second and core, with references"] = round(rate, 1)
    stages: dict[str, Any] = {}
    for name, stage in config.stages.items():
        known = ADAPTER_STAGES[0] in stages and name in ADAPTER_STAGES
        work = stages[ADAPTER_STAGES[0]] if known else _work(tasks, name, mesh)
        if chip is not None:
            work |= {"seconds at share": seconds_at_share(work, chip)}
        stages[name] = {**work, "batch": stage.batch}
    figures["stages"] = stages
    if chip is not None:
        figures["fits"] = {f"{m:g} minutes": fits(config, stages, m, rate) for m in minutes}
    say(json.dumps(figures, indent=1))
    if file is not None:
        write_json(file, figures)


def _work(tasks: Any, name: str, mesh: Mesh) -> dict[str, Any]:
    """Compile a stage's step and return its work as JSON values."""
    step, arguments = planned_step(tasks, name, mesh)
    program = PlannedProgram(name, step, arguments, PARTS, mesh, minutes=2, donate=(0,))
    values = compile_report(program).to_dict()
    kept = ("device", "TFLOP per device", "bytes moved per device", "kernels", "seconds to compile")
    memory = values["bytes per device"]["needed"]
    return {k: values[k] for k in kept} | {"bytes needed": memory}


def seconds_at_share(work: Mapping[str, Any], chip: Chip) -> float:
    """Return the seconds of a step at `SHARE` of the peaks of arithmetic and of memory."""
    arithmetic = work["TFLOP per device"] * 1e12 / chip.flops
    memory = work["bytes moved per device"] / chip.bandwidth
    return round(max(arithmetic, memory) / SHARE, 5)


def fits(
    config: SmallModelConfig, stages: Mapping[str, Any], minutes: float, rate: float
) -> dict[str, Any]:
    """Return steps and samples of each stage that fit, and the scenes that `CORES` draw."""
    values: dict[str, Any] = {}
    for name, stage in config.stages.items():
        seconds = 60 * minutes * stage.share
        steps = int(seconds / stages[name]["seconds at share"])
        values[name] = {"seconds": seconds, "steps": steps, "samples": steps * stage.batch}
    drawn = rate * CORES * 60 * minutes * config.stages["vae"].share
    most = config.chunks * draw.PEOPLE * draw.SCENES
    return values | {"scenes drawn": int(min(drawn, most))}


def drawing_rate(config: SmallModelConfig) -> float:
    """Return the scenes that a core draws in a second of its time, their references included."""
    with tempfile.TemporaryDirectory() as folder:
        job = draw.jobs(Path(folder), 1, 0, config.side, config.encoder_side, 8)[0]
        draw.draw_chunk(job)  # reads the drawings
        start = time.process_time()
        draw.draw_chunk(job._replace(number=1))
        return draw.PEOPLE * draw.SCENES / (time.process_time() - start)
