"""`python -m convert from-torch`: convert published weights to a MODEL folder."""

import errno
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convert import sources
from convert.engine import match, write_components
from convert.sources import SUBFOLDERS, TOKENIZERS, Source, locate
from convert.tokenizers import TOKENIZER_FILES, read_tokenizer
from ic_jax import cli
from ic_jax.weights.model_folder import create
from ic_jax.weights.tensors import FLOATS

DTYPES = {"bfloat16": FLOATS["BF16"], "float16": FLOATS["F16"], "float32": FLOATS["F32"]}


class UsageError(ValueError):
    """Arguments that cannot be combined."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `from-torch`."""
    parser.add_argument("--flux", metavar="PATH", help="diffusers model, or BFL single file")
    parser.add_argument("--siglip", metavar="PATH", help="transformers model")
    parser.add_argument("--dinov2", metavar="PATH", help="transformers model")
    parser.add_argument("--adapter", metavar="FILE", help=".bin or .safetensors file")
    parser.add_argument(
        "--adapter-config",
        metavar="JSON",
        help="sizes of an adapter that differs from the published one (default: a .json of the "
        "same name beside the adapter's file)",
    )
    parser.add_argument("--vae", metavar="PATH", help="diffusers model, or BFL's ae file")
    parser.add_argument("--t5", metavar="PATH", help="transformers model")
    parser.add_argument("--clip", metavar="PATH", help="transformers model")
    parser.add_argument("--tokenizer", metavar="DIR", help="CLIP's tokenizer, if not beside CLIP")
    parser.add_argument("--tokenizer-2", metavar="DIR", help="T5's tokenizer, if not beside T5")
    parser.add_argument("--out", metavar="MODEL", required=True, help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype to write (default: as in the files)")
    cli.add_overwrite(parser, "MODEL")


def run(args: Namespace) -> None:
    """Convert the named components; print a note for each part that is left out."""
    dtype = DTYPES.get(args.dtype)
    with create(args.out, overwrite=args.overwrite) as writer:
        root, parts = collect(args)
        flux = parts["transformer"].config if "transformer" in parts else None
        matched = [match(part, flux) for part in parts.values()]
        for note in (note for m in matched for note in m.notes):
            print(f"note: {note}", file=sys.stderr)
        folders = find_tokenizers(args, root, parts)
        tokenizers = {name: read_tokenizer(name, folder) for name, folder in folders}
        _check_room(writer.folder, parts, dtype)
        write_components(matched, writer, dtype)
        if flux:
            schedule, files = sources.read_scheduler(root, flux.guidance_embeds)
            writer.add_config("scheduler", schedule.to_dict())
            for file, content in files.items():
                writer.add_file("scheduler", file, content)
        for name, contents in tokenizers.items():
            for file, content in contents.items():
                writer.add_file(name, file, content)


def collect(args: Namespace) -> tuple[Path | None, dict[str, Source]]:
    """Return the pipeline folder, if `--flux` names one, and the named components.

    Raises:
        UsageError: the arguments name nothing, or an adapter without FLUX.
    """
    if not any((args.flux, args.siglip, args.dinov2, args.vae, args.t5, args.clip, args.adapter)):
        raise UsageError("nothing to convert; give --flux, --siglip, --dinov2, --adapter, ...")
    if args.adapter and not args.flux:
        raise UsageError("--adapter takes its sizes from FLUX; give --flux too")
    parts: dict[str, Source] = {}
    root = None
    if args.flux:
        path = locate(args.flux, sources.PIPELINE_FILES)
        sources.check_pipeline(path)
        root = path if (path / "model_index.json").is_file() else None
        parts["transformer"] = sources.open_component("transformer", path)
    if args.adapter:
        path = locate(args.adapter, sources.ADAPTER_FILES)
        config = args.adapter_config and Path(args.adapter_config)
        parts["adapter"] = sources.open_adapter(path, config)
    for component in ("siglip", "dinov2"):
        if getattr(args, component):
            path = locate(getattr(args, component), sources.MODEL_FILES)
            parts[component] = sources.open_component(component, path)
    for component in ("t5", "clip", "vae"):
        if name := getattr(args, component):
            where = (
                *sources.MODEL_FILES,
                *(f"{SUBFOLDERS[component]}/{p}" for p in sources.MODEL_FILES),
            )
            parts[component] = sources.open_component(component, locate(name, where))
        elif root and (root / SUBFOLDERS[component]).is_dir():
            parts[component] = sources.open_component(component, root / SUBFOLDERS[component])
        elif root:
            print(f"note: {root}: has no {SUBFOLDERS[component]}, left out", file=sys.stderr)
    return root, parts


def find_tokenizers(
    args: Namespace, root: Path | None, parts: dict[str, Source]
) -> Iterator[tuple[str, Path]]:
    """Yield the component and folder of each tokenizer: the folder that its option names, beside
    its encoder, the encoder's own folder, or in the pipeline.
    """
    for name, encoder in TOKENIZERS.items():
        candidates = []
        if encoder in parts:
            path = parts[encoder].path
            candidates = [path.parent / name, path]
        if root:
            candidates.append(root / name)
        if folder := getattr(args, name):
            yield name, Path(folder)
        elif folders := [f for f in candidates if any((f / x).is_file() for x in TOKENIZER_FILES)]:
            yield name, folders[0]
        elif encoder in parts:
            print(
                f"note: no tokenizer for {encoder}; give --{name.replace('_', '-')}",
                file=sys.stderr,
            )


def _check_room(folder: Path, parts: dict[str, Source], dtype: np.dtype | None) -> None:
    tensors = [t for part in parts.values() for t in part.tensors.values()]
    need = sum(t.nbytes // t.dtype.itemsize * (dtype or t.dtype).itemsize for t in tensors)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            errno.ENOSPC,
            f"{need / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
            str(folder.parent),
        )
