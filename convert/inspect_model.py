"""`python -m convert inspect`: the components of a MODEL folder, or of published weights."""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path

from convert.configs import read_object
from convert.containers import read_file
from convert.layouts import recognise
from convert.shards import weights_file
from ic_jax.from_dict import first_few
from ic_jax.weights.loading import COMPONENTS
from ic_jax.weights.lora.keys import kind_of
from ic_jax.weights.model_folder import MANIFEST, ModelFolder
from ic_jax.weights.tensors import OtherWeightsError, Tensor


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `inspect`."""
    parser.add_argument(
        "model", metavar="PATH", help="MODEL folder, or any file or folder of published weights"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare the checksum of every file of a MODEL"
    )


def run(args: Namespace) -> None:
    """Print a line per component."""
    path = Path(args.model).expanduser()
    if path.is_file():
        _print_file(path)
    elif (path / MANIFEST).is_file() or not (files := list(_published(path))):
        _print_model(ModelFolder.open(args.model), verify=args.verify)
    else:
        index = path / "model_index.json"
        if index.is_file():
            print(f"{path}: a pipeline of the class {read_object(index).get('_class_name')}")
        for file in files:
            _print_file(file)


def _published(folder: Path) -> Iterable[Path]:
    """Yield the files of weights of a published model, or of each folder of a pipeline."""
    if (folder / "config.json").is_file():
        yield weights_file(folder)
    elif (folder / "model_index.json").is_file():
        for part in sorted(folder.iterdir()):
            if any(part.glob("*.safetensors")) or any(part.glob("*.bin")):
                yield weights_file(part)


def _print_file(path: Path) -> None:
    """Print what a file of weights holds, read from its header."""
    contents = None
    try:
        contents = read_file(path)
        parts, rest = recognise(path, contents.tensors)
    except OtherWeightsError as error:
        kind = None if contents is None else kind_of(contents.tensors)
        print(f"{path}: is {kind}" if kind else error)
        return
    print(f"{path}: {contents.storage}")
    for part in parts:
        where = f"  under {part.prefix}" if part.prefix else ""
        print(
            f"  {part.layout.component:<12} {part.layout.name:<17}{_summary(part.tensors)}{where}"
        )
    if left := [*contents.left_out, *rest]:
        print(f"  and {len(left)} entries that are of none: {first_few(left, 5)}")


def _print_model(model: ModelFolder, *, verify: bool) -> None:
    if verify:
        model.verify()
    print(f"{'component':<12} {'files':>5} {'bytes':>15} {'tensors':>8} {'parameters':>15}  types")
    for component, files in model.components.items():
        size = sum(entry.size for entry in files.values())
        line = f"{component:<12} {len(files):>5} {size:>15,}"
        if component in COMPONENTS:
            line += _summary(model.tensors(component))
        if component == "transformer" and model.is_kontext:
            line += "  FLUX.1 Kontext"
        print(line)
    if verify:
        print("every file matches its checksum")


def _summary(tensors: Mapping[str, Tensor]) -> str:
    """Return number of tensors, number of parameters, and dtypes."""
    count = sum(math.prod(t.shape) for t in tensors.values())
    types = ", ".join(sorted({str(t.dtype) for t in tensors.values()}))
    return f" {len(tensors):>8} {count:>15,}  {types}"
