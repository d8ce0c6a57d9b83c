"""Published weights as sources of a conversion: folders, single files and Hub ids."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert import bfl
from convert.configs import (
    ORIGINAL,
    as_published,
    build,
    config_class,
    from_published,
    read_adapter_config,
    read_json,
    refuse,
)
from convert.published import OTHER_CHANNELS, OTHER_CLASSES
from convert.torch_read import read_torch
from ic_jax.config import CONFIGS, SchedulerConfig
from ic_jax.files import as_json
from ic_jax.weights import hub
from ic_jax.weights.safetensors_io import read_tensors
from ic_jax.weights.tensors import Tensor, WeightsError

# Folder of each component in a pipeline.
SUBFOLDERS = {
    "transformer": "transformer",
    "vae": "vae",
    "clip": "text_encoder",
    "t5": "text_encoder_2",
}
TOKENIZERS = {"tokenizer": "clip", "tokenizer_2": "t5"}
STEMS = ("diffusion_pytorch_model", "model")  # file names of diffusers and transformers
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
# Prefixes that occur in the single files of other models only.
OTHER_KEYS = {
    "joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "redux_up.": "FLUX.1 Redux",
    "double_stream_modulation_img.": "FLUX.2",
}


@dataclass
class Source:
    """A published component."""

    component: str
    path: Path
    config: Any
    tensors: dict[str, Tensor]
    bfl: bool = False  # whether `tensors` has the names of a BFL single file
    files: dict[str, bytes] = field(default_factory=dict)  # copied to the MODEL folder as they are


def locate(value: str, patterns: Sequence[str]) -> Path:
    """Return a local path, or the local copy of a Hub repository.

    Raises:
        FileNotFoundError: `value` is no path and no repository that can be fetched.
    """
    path = Path(value).expanduser()
    if path.exists():
        return path
    if hub.REPO_ID.fullmatch(value):
        return hub.fetch(value, patterns)
    raise FileNotFoundError(f"{value}: no such file or folder, and not a Hub id (org/name)")


def open_component(component: str, path: Path) -> Source:
    """Open a component.

    Args:
        path: its folder, the pipeline folder that contains it, or a BFL single file.

    Raises:
        WeightsError: another model, or a damaged one.
    """
    if path.is_file():
        return _open_single_file(component, path)
    folder = path
    if not (path / "config.json").is_file() and component in SUBFOLDERS:
        folder = path / SUBFOLDERS[component]
    if not (folder / "config.json").is_file():
        has = ", ".join(sorted(p.name for p in path.iterdir())[:10]) or "nothing"
        raise WeightsError(f"{path}: has no config.json of a {component}; it holds {has}")
    config, files = read_config(component, folder / "config.json")
    preprocessor = folder / "preprocessor_config.json"
    if preprocessor.is_file():
        files[preprocessor.name] = preprocessor.read_bytes()
    return Source(component, folder, config, read_folder(folder), files=files)


def read_config(component: str, path: Path) -> tuple[Any, dict[str, bytes]]:
    """Read a published config; return ours, and the file that keeps the published values."""
    values = read_json(path)
    config = from_published(component, values, path)
    return config, {ORIGINAL: as_json(as_published(component, values))}


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a diffusers or transformers folder, sharded or not."""
    for stem in STEMS:
        single = folder / f"{stem}.safetensors"
        if single.is_file():
            return read_tensors(single)
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _read_shards(index)
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".safetensors"))
    raise WeightsError(
        f"{folder}: has no {STEMS[0]}.safetensors or {STEMS[1]}.safetensors"
        + (f", only {', '.join(others[:5])}" if others else "")
        + "; get the safetensors form of this model"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
        raise WeightsError(f"{index}: has no weight_map; download or copy it again")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise WeightsError(f"{shard}: is missing, and {index.name} names it; download it again")
        new = read_tensors(shard)
        if twice := sorted(tensors.keys() & new.keys()):
            raise WeightsError(f"{shard}: {twice[0]} is in another shard too; download both again")
        tensors |= new
    if unmatched := sorted(tensors.keys() ^ where.keys()):
        names = ", ".join(unmatched[:10])
        raise WeightsError(
            f"{index}: differs from its shards by {len(unmatched)} keys: {names}; "
            "download them again"
        )
    return tensors


def _open_single_file(component: str, path: Path) -> Source:
    tensors = read_tensors(path)
    if component not in ("transformer", "vae"):
        raise WeightsError(
            f"{path}: is a file; give the folder of a {component} with its config.json"
        )
    for start, name in OTHER_KEYS.items():
        if any(key.startswith(start) for key in tensors):
            raise refuse(path, name)
    if component == "transformer" and "kontext" in path.name.lower():
        raise refuse(path, "FLUX.1 Kontext")
    beside = path.with_suffix(".json")
    files: dict[str, bytes] = {}
    try:
        if component == "transformer" and tensors["img_in.weight"].shape[1:] in [
            (channels,) for channels in OTHER_CHANNELS
        ]:
            raise refuse(path, OTHER_CHANNELS[tensors["img_in.weight"].shape[1]])
        if beside.is_file() and "_class_name" in read_json(beside):
            config, files = read_config(component, beside)
        elif beside.is_file():  # of an older to-torch: our own config
            config = build(config_class(component), read_json(beside), beside)
        else:
            config = (bfl.flux_config if component == "transformer" else bfl.vae_config)(tensors)
    except (KeyError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise WeightsError(
            f"{path}: is no single file of a {component} in BFL's names: {reason}; for diffusers' "
            "files give their folder"
        ) from None
    return Source(component, path, config, tensors, bfl=True, files=files)


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
    tensors = read_torch(path) if path.suffix in (".bin", ".pt", ".pth") else read_tensors(path)
    groups = {name.partition(".")[0] for name in tensors}
    if not groups & {"ip_adapter", "image_proj"}:
        raise WeightsError(f"{path}: is no InstantCharacter adapter: no ip_adapter or image_proj")
    beside = config or path.with_suffix(".json")
    sizes = CONFIGS["instantcharacter"]
    if config or beside.is_file():
        sizes = read_adapter_config(beside)
    return Source("adapter", path, sizes, tensors)


def check_pipeline(folder: Path) -> None:
    """Refuse the pipeline of another model, even if its transformer has FLUX's config."""
    index = folder / "model_index.json"
    name = read_json(index).get("_class_name") if index.is_file() else None
    if name in OTHER_CLASSES:
        raise refuse(index, OTHER_CLASSES[name])


def read_scheduler(folder: Path | None, guidance: bool) -> tuple[Any, dict[str, bytes]]:
    """Read the pipeline's schedule as `read_config` does.

    Without one, return that of FLUX.1-dev, or of FLUX.1-schnell if the transformer takes no
    guidance.
    """
    path = folder and folder / "scheduler" / "scheduler_config.json"
    if path and path.is_file():
        return read_config("scheduler", path)
    return SchedulerConfig() if guidance else SchedulerConfig(False, shift=1.0), {}
