"""The commands that the suite interrupts: what they are given, write and leave."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import TINY
from tests.data_source import contents
from tests.faults.world import LORA, World
from train.checkpoints import Checkpoints
from train.recipe import Saving

Happened = Callable[[Path], bool]  # whether something can be seen in the folder of a trial
STEPS = (2, 4, 6)  # ends of the stages


@dataclass(frozen=True)
class Command:
    """A command that writes into the folder of a trial."""

    main: str  # module
    arguments: Callable[[World, Path], list[Any]]
    under_test: tuple[str, ...]  # packages and files
    result: Callable[[Path], Mapping[str, Any]]  # what must be equal in the end
    whole: Callable[[Path], Mapping[str, Any]]  # the part of it that a user takes for finished
    # Spans of time to kill in, by name: where they begin and end.
    spans: Mapping[str, tuple[Happened, Happened]]
    overwrite: bool = True  # takes --overwrite
    depth: int = 1  # of the folders that appear at once, with all that they hold


def never(_: Path) -> bool:
    """Never happen: the span lasts to the end of the process."""
    return False


def always(_: Path) -> bool:
    """Have happened when the process begins."""
    return True


def exists(pattern: str, count: int = 1) -> Happened:
    """Have so many files or folders that match a pattern."""
    return lambda folder: sum(1 for _ in folder.glob(pattern)) >= count


def files(folder: Path) -> dict[str, bytes]:
    """Return every file, without the trial's own folder in their texts, and empty folders."""
    found = {
        name: data.replace(str(folder).encode(), b"FOLDER")
        for name, data in contents(folder).items()
    }
    empty = [path for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())]
    return found | {f"{path.relative_to(folder)}/": b"" for path in empty}


def finished(*names: str) -> Callable[[Path], dict[str, bytes]]:
    """Return the files below these names alone, as patterns."""
    return lambda folder: {
        name: data
        for name, data in files(folder).items()
        if any(Path(name).parts[0] == path.name for n in names for path in folder.glob(n))
    }


def cached(folder: Path) -> dict[str, bytes]:
    """Return the files of a cache's finished parts."""
    parts = {name: data for name, data in files(folder).items() if ".partial" not in name}
    return {name: data for name, data in parts.items() if name.count("/") > 1}


def trained(folder: Path) -> dict[str, Any]:
    """Return what a run leaves but times: its last state, its losses, the names of its files."""
    run = folder / "run"
    metrics = run / "metrics.jsonl"
    text = metrics.read_text() if metrics.exists() else ""  # saves alone report nothing
    lines = [json.loads(line) for line in text.splitlines()]
    left = {path.name for path in run.iterdir()} - {"quarantine"}
    parts = [path.name for path in run.rglob("*.part")]
    quarantine = [*(run / "quarantine").glob("*")]
    assert len(quarantine) <= 2, quarantine
    return {
        "losses": [(line["step"], line["loss"]) for line in lines if "loss" in line],
        "names": sorted(left) + parts,
        "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
        "manifests": sorted(path.name for path in (run / "manifests").iterdir()),
        **{name: array.tobytes() for name, array in World.state(run).items()},
    }


def committed(folder: Path) -> dict[str, Any]:
    """Return the steps that count, each of which must be whole."""
    run = folder / "run"
    if not (run / "manifests").exists():
        return {}
    reader = Checkpoints(run, Saving(), read_only=True)
    try:
        for step in reader.steps:
            reader.verify(step)
    finally:
        reader.close()
    return {}


def saves() -> dict[str, tuple[Happened, Happened]]:
    """Return the spans of the saves at the stages' ends."""
    step = "run/checkpoints/{0}*"
    return {
        f"save at stage {n}'s end": (
            exists(step.format(end)),
            exists(f"run/manifests/{end}.json"),
        )
        for n, end in enumerate(STEPS, 1)
    }


START = {"from the start": (always, never)}


def writing(pattern: str) -> dict[str, tuple[Happened, Happened]]:
    """Return the spans from the start and from the first file."""
    return START | {"while writing": (exists(pattern), never)}


def between_shards(number: int) -> dict[str, tuple[Happened, Happened]]:
    """Return the span from one finished shard to the next but one."""
    notes = "out.partial/work/*.json"
    return {f"after shard {number}": (exists(notes, number), exists(notes, number + 2))}


LIBRARY = ("ic_jax/files.py", "ic_jax/cli.py", "ic_jax/untrusted_files.py", "ic_jax/weights")
TRAINING = (*LIBRARY, "train")
OUT = finished("out", "out.png")


def _from_torch(world: World, out: Path) -> list[Any]:
    towers = ["--siglip", TINY / "siglip", "--dinov2", TINY / "dinov2"]
    adapter = ["--adapter", TINY / "instantcharacter_ip-adapter.bin"]
    return ["from-torch", "--flux", TINY / "flux", *towers, *adapter, "--out", out / "out"]


def _prepare(world: World, out: Path) -> list[Any]:
    options = ["--resolution", "64", "--shard-size", "4", "--workers", "1"]
    return ["prepare", world.pictures, "--out", out / "out", *options]


def _infer(world: World, out: Path) -> list[Any]:
    options = ["--dtype", "float32", "--height", "32", "--width", "32", "--steps", "2"]
    options += ["--max-sequence-length", "16", "--subject", world.picture]
    return ["--model", world.model, "--prompt", "a disc", *options, "--out", out / "out.png"]


COMMANDS = {
    "convert from-torch": Command(
        *("convert.commands", _from_torch, (*LIBRARY, "convert"), files, OUT),
        writing("out.partial"),
    ),
    "convert to-torch": Command(
        "convert.commands",
        lambda world, out: ["to-torch", world.converted, "--out", out / "out"],
        *((*LIBRARY, "convert"), files, OUT, writing("out.partial")),
    ),
    "train prepare": Command(
        *("train.commands", _prepare, (*LIBRARY, "train/data"), files, OUT),
        writing("out.partial") | between_shards(5) | between_shards(20),
    ),
    "train cache": Command(
        "train.commands",
        lambda world, out: ["cache", world.recipe(out, cache=out / "cache")],
        *(TRAINING, files, cached, writing("cache/*.partial")),
        overwrite=False,
        depth=2,
    ),
    "train": Command(
        "train.commands",
        lambda world, out: [world.recipe(out, cache=world.cache, keys=LORA)],
        *(TRAINING, trained, committed, START | saves()),
        overwrite=False,
    ),
    "train, the saves alone": Command(
        "tests.faults.saves",
        lambda world, out: [out / "run"],
        *(("train/checkpoints.py", "ic_jax/files.py"), trained, committed, saves()),
        overwrite=False,
    ),
    "train export": Command(
        "train.commands",
        lambda world, out: ["export", world.run, "--out", out / "out"],
        *(TRAINING, files, OUT, writing("out.partial")),
    ),
    "infer": Command(
        *("infer.commands", _infer, (*LIBRARY, "infer"), files, OUT, writing(".*.part")),
    ),
}
