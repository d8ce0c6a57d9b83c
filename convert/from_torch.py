"""`python -m convert from-torch`: convert published weights to a MODEL folder."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert import sources
from convert.engine import match, write_components
from convert.sources import SUBFOLDERS, TOKENIZERS, Source, locate
from convert.tokenizers import TOKENIZER_FILES, TOKENIZER_JSON, read_tokenizer
from ic_jax import cli
from ic_jax.files import as_json, check_room
from ic_jax.weights import hub
from ic_jax.weights.fit import check_fit
from ic_jax.weights.model_folder import KONTEXT, PIPELINE_FILE, create
from ic_jax.weights.tensors import FLOATS

DTYPES = {"bfloat16": FLOATS["BF16"], "float16": FLOATS["F16"], "float32": FLOATS["F32"]}

# Where the tokenizers were published, and the rows of the tables that they index.
PUBLISHED_TOKENIZERS = {
    "tokenizer": ("openai/clip-vit-large-patch14", 49408),
    "tokenizer_2": ("google/t5-v1_1-xxl", 32128),
}


class UsageError(ValueError):
    """Arguments that cannot be combined."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `from-torch`."""
    parser.add_argument(
        "--flux", metavar="PATH", help="diffusers model, or a file of any layout, GGUF too"
    )
    kontext = "the file of --flux is FLUX.1 Kontext's, whose tensors look like FLUX.1-dev's"
    parser.add_argument("--kontext", action="store_true", help=kontext)
    parser.add_argument("--siglip", metavar="PATH", help="transformers model, or a file")
    parser.add_argument("--dinov2", metavar="PATH", help="transformers model, or a file")
    parser.add_argument("--adapter", metavar="FILE", help=".bin or .safetensors file")
    parser.add_argument(
        "--adapter-config",
        metavar="JSON",
        help="sizes of an adapter that differs from the published one (default: a .json of the "
        "same name beside the adapter's file)",
    )
    parser.add_argument("--vae", metavar="PATH", help="diffusers model, or a file")
    parser.add_argument("--t5", metavar="PATH", help="transformers model, or a file")
    parser.add_argument("--clip", metavar="PATH", help="transformers model, or a file")
    parser.add_argument("--tokenizer", metavar="DIR", help="CLIP's tokenizer, if not beside CLIP")
    parser.add_argument("--tokenizer-2", metavar="DIR", help="T5's tokenizer, if not beside T5")
    parser.add_argument(
        "--out", metavar="MODEL", type=cli.path, required=True, help="folder to write"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype to write (default: as in the files; bfloat16 for quantised ones)",
    )
    cli.add_overwrite(parser, "MODEL")


def run(args: Namespace) -> None:
    """Convert the named components; print a note for each part that is left out."""
    dtype = DTYPES.get(args.dtype)
    with create(args.out, overwrite=args.overwrite) as writer:
        root, parts = collect(args)
        for part in parts.values():
            part.dtype = dtype or part.dtype
        flux = parts["transformer"].config if "transformer" in parts else None
        folders = find_tokenizers(args, root, parts)
        tokenizers = {name: read_tokenizer(name, folder) for name, folder in folders}
        check_fit(
            {name: part.config for name, part in parts.items()},
            {name: contents[TOKENIZER_JSON] for name, contents in tokenizers.items()},
        )
        matched = [match(part, flux) for part in parts.values()]
        for note in (note for m in matched for note in m.notes):
            print(f"note: {note}", file=sys.stderr)
        _check_room(writer.folder, parts)
        write_components(matched, writer)
        if flux:
            if args.kontext or (root and sources.pipeline_class(root) == KONTEXT):
                writer.add_file("transformer", PIPELINE_FILE, as_json({"_class_name": KONTEXT}))
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
        UsageError: the arguments name nothing, or an adapter or --kontext without FLUX.
    """
    if not any((args.flux, args.siglip, args.dinov2, args.vae, args.t5, args.clip, args.adapter)):
        raise UsageError("nothing to convert; give --flux, --siglip, --dinov2, --adapter, ...")
    if args.adapter and not args.flux:
        raise UsageError("--adapter takes its sizes from FLUX; give --flux too")
    if args.kontext and not args.flux:
        raise UsageError("--kontext says what --flux is; give --flux too")
    parts: dict[str, Source] = {}
    root = None
    if args.flux:
        path = locate(args.flux, sources.PIPELINE_FILES)
        sources.pipeline_class(path)  # refuses other models
        root = path if (path / "model_index.json").is_file() else None
        parts["transformer"] = sources.open_component("transformer", path)
    if args.adapter:
        path = locate(args.adapter, sources.ADAPTER_FILES)
        config = args.adapter_config and Path(args.adapter_config).expanduser()
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
        elif args.flux and component in parts["transformer"].in_file:
            parts[component] = sources.open_component(component, parts["transformer"].path)
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
            yield name, Path(folder).expanduser()
        elif folders := [f for f in candidates if any((f / x).is_file() for x in TOKENIZER_FILES)]:
            yield name, folders[0]
        elif encoder in parts:
            if folder := published_tokenizer(name, parts[encoder].config):
                yield name, folder
            else:
                option = f"--{name.replace('_', '-')}"
                print(f"note: no tokenizer for {encoder}; give {option}", file=sys.stderr)


def published_tokenizer(name: str, encoder: Any) -> Path | None:
    """Return the folder of the published tokenizer, if the encoder has its vocabulary.

    A file of an encoder comes without one.
    """
    repo_id, words = PUBLISHED_TOKENIZERS[name]
    if encoder.vocab_size != words:
        return None
    try:
        folder = hub.fetch(repo_id, TOKENIZER_FILES)
    except FileNotFoundError:  # not at hand, and no connection
        return None
    print(f"note: {name} as published in {repo_id}", file=sys.stderr)
    return folder


def _check_room(folder: Path, parts: dict[str, Source]) -> None:
    need = sum(
        t.nbytes // t.dtype.itemsize * (part.dtype or t.dtype).itemsize
        for part in parts.values()
        for t in part.tensors.values()
    )
    check_room(folder.parent, need)
