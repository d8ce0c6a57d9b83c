"""Published weights as sources of a conversion: folders, single files and Hub ids."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.configs import (
    ORIGINAL,
    as_published,
    build,
    config_class,
    from_published,
    is_class,
    read_adapter_config,
    read_object,
    refuse_other,
)
from convert.containers import Contents, read_file
from convert.layouts import Part, recognise
from convert.published import OTHER_CLASSES
from convert.shards import weights_file
from convert.sizes import config_of
from ic_jax.config import CONFIGS, SchedulerConfig
from ic_jax.files import as_json
from ic_jax.from_dict import first_few
from ic_jax.untrusted_files import read_bytes
from ic_jax.weights import hub
from ic_jax.weights.fit import ENCODERS
from ic_jax.weights.model_source import in_hub_cache
from ic_jax.weights.tensors import Tensor, WeightsError

# Folder of each component in a pipeline.
SUBFOLDERS = {
    "transformer": "transformer",
    "vae": "vae",
    "clip": "text_encoder",
    "t5": "text_encoder_2",
}
TOKENIZERS = ENCODERS
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "spiece.model")
PIPELINE_FILES = (
    "model_index.json",
    *(
        f"{folder}/{pattern}"
        for folder in (*SUBFOLDERS.values(), "scheduler", *TOKENIZERS)
        for pattern in MODEL_FILES
    ),
)
ADAPTER_FILES = ("instantcharacter_ip-adapter.*",)
# Option of each component.
OPTIONS = {"transformer": "--flux"} | {
    name: f"--{name}" for name in ("vae", "t5", "clip", "siglip", "dinov2", "adapter")
}


@dataclass
class Source:
    """A published component."""

    component: str
    path: Path
    config: Any
    tensors: dict[str, Tensor]
    bfl: bool = False  # whether `tensors` has the names of a BFL single file
    dtype: np.dtype | None = None  # to write; None: as in the file
    notes: list[str] = field(default_factory=list)
    in_file: frozenset[str] = frozenset()  # components of the single file that it came from
    files: dict[str, bytes] = field(default_factory=dict)  # copied to the MODEL folder as they are


def locate(value: str, patterns: Sequence[str]) -> Path:
    """Return a local path, or the local copy of a Hub repository.

    Args:
        value: path (with or without ~), org/name, org/name@revision, or a repository's folder in
            the Hub library's cache.

    Raises:
        FileNotFoundError: `value` is no path and no repository that can be fetched.
    """
    path = in_hub_cache(Path(value).expanduser())
    if path.exists():
        return path
    repo_id, _, revision = value.partition("@")
    if hub.REPO_ID.fullmatch(repo_id):
        return hub.fetch(repo_id, patterns, revision or None)
    raise FileNotFoundError(
        f"{value}: no such file or folder, and not a Hub id (org/name or org/name@revision)"
    )


def open_component(component: str, path: Path) -> Source:
    """Open a component.

    Args:
        path: its folder, the pipeline folder that contains it, or a file that holds it, alone or
            with others.

    Raises:
        WeightsError: another model, or a damaged one.
    """
    if path.is_file():
        return open_file(component, path)
    folder = path
    if not (path / "config.json").is_file() and component in SUBFOLDERS:
        folder = path / SUBFOLDERS[component]
    if not (folder / "config.json").is_file():
        has = first_few(sorted(p.name for p in path.iterdir())) or "nothing"
        raise WeightsError(f"{path}: has no config.json of a {component}; it holds {has}")
    config, files = read_config(component, folder / "config.json")
    preprocessor = folder / "preprocessor_config.json"
    if preprocessor.is_file():
        files[preprocessor.name] = read_bytes(preprocessor)
    contents = read_file(weights_file(folder))
    notes = _notes(folder, contents, [])
    return Source(
        component, folder, config, contents.tensors, dtype=contents.dtype, notes=notes, files=files
    )


def read_config(component: str, path: Path) -> tuple[Any, dict[str, bytes]]:
    """Read a published config; return ours, and the file that keeps the published values."""
    values = read_object(path)
    config = from_published(component, values, path)
    return config, {ORIGINAL: as_json(as_published(component, values, path))}


def open_file(component: str, path: Path) -> Source:
    """Open a component in a file, which may hold others as well.

    Its config is a .json of the same name, config.json beside it, or what the tensors' shapes say.

    Raises:
        WeightsError: the file holds other components, another model, or is damaged.
    """
    contents = read_file(path)
    parts, rest = recognise(path, contents.tensors)
    fitting = [part for part in parts if part.layout.component == component]
    if len(fitting) != 1:
        options = " ".join(sorted({OPTIONS[part.layout.component] for part in parts}))
        what = f"{len(fitting)} components of this kind" if fitting else f"no {component}"
        raise WeightsError(f"{path}: holds {what}, but {described(parts)}; give it to {options}")
    (part,) = fitting
    notes = _notes(path, contents, rest)
    config, files = _config_beside(part, path)
    if config is None:
        config, assumed = _config_of(part, path)
        notes.append(f"{path}: sizes follow from its tensors; as published are {assumed}")
    bfl = part.layout.name == "BFL"
    in_file = frozenset(part.layout.component for part in parts)
    return Source(component, path, config, part.tensors, bfl, contents.dtype, notes, in_file, files)


def described(parts: Iterable[Part]) -> str:
    """Return what components a file holds: "transformer (BFL), t5 (transformers)"."""
    return ", ".join(f"{part.layout.component} ({part.layout.name})" for part in parts)


def _notes(path: Path, contents: Contents, rest: Sequence[str]) -> list[str]:
    notes = []
    if contents.dtype is not None:
        notes.append(f"{path}: is stored as {contents.storage}; becomes bfloat16 unless --dtype is")
    if left := [*contents.left_out, *rest]:
        names = first_few(left, 5)
        notes.append(f"{path}: leaves out {len(left)} entries that are of none: {names}")
    return notes


def _config_beside(part: Part, path: Path) -> tuple[Any, dict[str, bytes]]:
    component, beside = part.layout.component, path.with_suffix(".json")
    if beside.is_file():
        values = read_object(beside)
        if "_class_name" in values or "model_type" in values:
            return read_config(component, beside)
        return build(config_class(component), values, beside), {}  # of an older to-torch: our own
    beside = path.parent / "config.json"
    if beside.is_file() and is_class(component, read_object(beside)):
        return read_config(component, beside)
    return None, {}


def _config_of(part: Part, path: Path) -> tuple[Any, str]:
    component = part.layout.component
    try:
        return config_of(component, part.layout.name, part.tensors)
    except (KeyError, ValueError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise WeightsError(f"{path}: is a damaged or cut {component}: {reason}") from None


def open_adapter(path: Path, config: Path | None) -> Source:
    """Open the adapter.

    Args:
        path: its .bin or .safetensors file, or the folder that contains one.
        config: file of its sizes; by default a .json of the same name beside it, or else the
            published sizes.

    Raises:
        WeightsError: a file of another kind, or a damaged one.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
        if not files:
            raise WeightsError(f"{path}: holds no .safetensors or .bin; give the adapter's file")
        path = files[-1]  # .safetensors rather than .bin
    contents = read_file(path)
    parts, rest = recognise(path, contents.tensors)
    if [part.layout.component for part in parts] != ["adapter"]:
        raise WeightsError(f"{path}: is no InstantCharacter adapter: it holds {described(parts)}")
    beside = config or path.with_suffix(".json")
    sizes = CONFIGS["instantcharacter"]
    if config or beside.is_file():
        sizes = read_adapter_config(beside)
    notes = _notes(path, contents, rest)
    return Source("adapter", path, sizes, parts[0].tensors, dtype=contents.dtype, notes=notes)


def pipeline_class(folder: Path) -> str | None:
    """Return the class of a pipeline's folder; None for another folder or file.

    Raises:
        WeightsError: the pipeline of another model, even if its transformer has FLUX's config.
    """
    index = folder / "model_index.json"
    name = read_object(index).get("_class_name") if index.is_file() else None
    refuse_other(index, name, OTHER_CLASSES)
    return name


def read_scheduler(folder: Path | None, guidance: bool) -> tuple[Any, dict[str, bytes]]:
    """Read the pipeline's schedule as `read_config` does.

    Without one, return that of FLUX.1-dev, or of FLUX.1-schnell if the transformer takes no
    guidance.
    """
    path = folder and folder / "scheduler" / "scheduler_config.json"
    if path and path.is_file():
        return read_config("scheduler", path)
    return SchedulerConfig() if guidance else SchedulerConfig(False, shift=1.0), {}
