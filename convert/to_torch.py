"""`python -m convert to-torch`: convert a MODEL folder back to the published layouts."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convert import bfl
from convert.configs import ORIGINAL, to_published
from convert.engine import export
from convert.names import published_shapes, slots
from convert.progress import Advance, progress
from convert.sources import SUBFOLDERS
from convert.torch_write import write_torch
from ic_jax import cli
from ic_jax.files import as_json, atomic_folder
from ic_jax.untrusted_files import read_bytes
from ic_jax.weights.loading import COMPONENTS, read_config
from ic_jax.weights.model_folder import CONFIG, PIPELINE_FILE, UNUSED, ModelFolder
from ic_jax.weights.safetensors_io import Spec, write_tensors
from ic_jax.weights.tensors import Mismatch, Tensor, WeightsError

ADAPTER = "instantcharacter_ip-adapter"
FLUX_STEMS = ("flux1-dev", "flux1-schnell", "flux1-kontext-dev")
BFL_COMPONENTS = ("transformer", "vae")
OWNED = {
    *("flux", "siglip", "dinov2"),
    *(f"{ADAPTER}.{suffix}" for suffix in ("bin", "safetensors", "json")),
    *(f"{n}.{s}" for n in (*FLUX_STEMS, "ae") for s in ("safetensors", "json")),
}
# Entries of model_index.json: a component's name in the pipeline, its library and class.
PIPELINE = {
    "transformer": ("transformer", "diffusers", "FluxTransformer2DModel"),
    "vae": ("vae", "diffusers", "AutoencoderKL"),
    "clip": ("text_encoder", "transformers", "CLIPTextModel"),
    "t5": ("text_encoder_2", "transformers", "T5EncoderModel"),
    "scheduler": ("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler"),
    "tokenizer": ("tokenizer", "transformers", "CLIPTokenizer"),
    "tokenizer_2": ("tokenizer_2", "transformers", "T5TokenizerFast"),
}
ANY = "PreTrainedTokenizerFast"  # transformers' class for any tokenizer.json


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `to-torch`."""
    parser.add_argument("model", metavar="MODEL", type=cli.path, help="folder to convert")
    parser.add_argument(
        "--out", metavar="DIR", type=cli.path, required=True, help="folder to write"
    )
    parser.add_argument(
        "--bfl", action="store_true", help="write transformer and VAE as BFL single files"
    )
    cli.add_overwrite(parser, "DIR")


def run(args: Namespace) -> None:
    """Write the components of a MODEL folder in published layouts."""
    model = ModelFolder.open(args.model)
    model.verify()
    components = [component for component in model.components if component in COMPONENTS]
    published = {component: read_published(model, component) for component in components}
    total = sum(t.nbytes for tensors in published.values() for t in tensors.values())
    if "adapter" in published:  # as .safetensors and as .bin
        total += sum(t.nbytes for t in published["adapter"].values())
    single = BFL_COMPONENTS if args.bfl else ()
    with (
        atomic_folder(args.out, overwrite=args.overwrite, owns=OWNED.__contains__) as folder,
        progress(total) as advance,
    ):
        for component, tensors in published.items():
            if component == "adapter":
                _write_adapter(folder, read_config(model, component), tensors, advance)
            elif component in single:
                _write_bfl(folder, model, component, tensors, advance)
            else:
                target = folder / _place(component)
                config = _published_config(model, component, tensors)
                _write_folder(target, component, config, tensors, advance)
                _copy(model, component, target)
        _write_rest(folder, model, [k for k in components if k not in single])


def read_published(model: ModelFolder, component: str) -> dict[str, Tensor]:
    """Return the tensors of a component by published name.

    Raises:
        WeightsError: the tensors do not match the component's config.
    """
    config = read_config(model, component)
    flux = read_config(model, "transformer") if component == "adapter" else None
    parts, tensors = slots(component, config, flux), model.tensors(component)
    if wrong := Mismatch.between({path: slot.shape for path, slot in parts.items()}, tensors):
        raise WeightsError(f"{model.path / component}: {wrong}; convert the model again")
    return export(tensors, parts, model.unused(component))


def _published_config(
    model: ModelFolder, component: str, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """Return a component's published config, with all values of the one it came from."""
    has_original = ORIGINAL in model.components[component]
    values = to_published(
        component,
        read_config(model, component),
        model.json(component, ORIGINAL) if has_original else None,
        model.path / component / ORIGINAL,
    )
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    for name in ("dtype", "torch_dtype"):
        if name in values and len(dtypes) == 1:  # --dtype may have changed it
            (values[name],) = dtypes
    return values


def _place(component: str) -> str:
    return f"flux/{SUBFOLDERS[component]}" if component in SUBFOLDERS else component


def _specs(tensors: dict[str, Tensor]) -> dict[str, Spec]:
    return {name: Spec(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _chunks(tensors: dict[str, Tensor], advance: Advance) -> Any:
    def chunks(name: str) -> Iterator[np.ndarray]:
        yield tensors[name].array()
        advance(name, tensors[name].nbytes)

    return chunks


def _write_folder(
    folder: Path, component: str, config: dict, tensors: dict[str, Tensor], advance: Advance
) -> None:
    """Write a component as diffusers or transformers do, with an index for several shards."""
    folder.mkdir(parents=True)
    stem = "diffusion_pytorch_model" if component in ("transformer", "vae") else "model"
    shards = write_tensors(folder, stem, _specs(tensors), _chunks(tensors, advance))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
            "weight_map": {name: shard.path.name for shard in shards for name in shard.names},
        }
        (folder / f"{stem}.safetensors.index.json").write_bytes(as_json(index))
    (folder / "config.json").write_bytes(as_json(config))


def _write_bfl(
    folder: Path, model: ModelFolder, component: str, tensors: dict[str, Tensor], advance: Advance
) -> None:
    """Write a BFL single file and, beside it, the config for `from-torch` to read."""
    stem, config = "ae", read_config(model, component)
    if component == "transformer":
        dev, schnell, kontext = FLUX_STEMS
        stem = kontext if model.is_kontext else dev if config.guidance_embeds else schnell
    parts = bfl.layout(component, published_shapes(slots(component, config)))
    fused = {name: part.join(tensors) for name, part in parts.items()}
    total = sum(t.nbytes for t in fused.values())
    write_tensors(folder, stem, _specs(fused), _chunks(fused, advance), shard_bytes=total)
    (folder / f"{stem}.json").write_bytes(as_json(_published_config(model, component, tensors)))


def _write_adapter(folder: Path, config: Any, tensors: dict[str, Tensor], advance: Advance) -> None:
    chunks = _chunks(tensors, advance)
    total = sum(t.nbytes for t in tensors.values())
    write_tensors(folder, ADAPTER, _specs(tensors), chunks, shard_bytes=total)
    groups: dict[str, dict[str, Spec]] = {"ip_adapter": {}, "image_proj": {}}
    for name, spec in _specs(tensors).items():
        group, _, rest = name.partition(".")
        groups[group][rest] = spec

    def array(group: str, name: str) -> np.ndarray:
        (value,) = chunks(f"{group}.{name}")
        return value

    write_torch(folder / f"{ADAPTER}.bin", groups, array)
    (folder / f"{ADAPTER}.json").write_bytes(as_json(config.to_dict()))


def _copy(model: ModelFolder, component: str, target: Path) -> None:
    """Copy the files that conversion left as they are."""
    target.mkdir(parents=True, exist_ok=True)
    ours = (CONFIG, ORIGINAL, PIPELINE_FILE, UNUSED)
    for name in model.components[component]:
        if name not in ours and not name.endswith(".safetensors"):
            (target / name).write_bytes(read_bytes(model.path / component / name))


def _is_generic(model: ModelFolder, component: str) -> bool:
    """Return whether a tokenizer is of transformers' generic class, not of CLIP's or T5's."""
    if "tokenizer_config.json" not in model.components[component]:
        return False
    return model.json(component, "tokenizer_config.json").get("tokenizer_class") == ANY


def _write_rest(folder: Path, model: ModelFolder, written: list[str]) -> None:
    """Write the tokenizers, the scheduler and the pipeline's index."""
    flux = folder / "flux"
    for component in ("tokenizer", "tokenizer_2"):
        if component in model.components:
            _copy(model, component, flux / component)
    if "scheduler" in model.components:
        target = flux / "scheduler"
        target.mkdir(parents=True)
        config = _published_config(model, "scheduler", {})
        (target / "scheduler_config.json").write_bytes(as_json(config))
    index: dict[str, Any] = {"_class_name": model.pipeline_class}
    for component, (name, *where) in PIPELINE.items():
        if component in written or component in model.components.keys() - COMPONENTS.keys():
            index[name] = ("transformers", ANY) if _is_generic(model, component) else where
    if flux.exists():
        (flux / "model_index.json").write_bytes(as_json(index))
