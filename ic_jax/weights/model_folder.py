"""MODEL folder: a model on disk.

    manifest.json              size and SHA-256 of every other file; written last
    transformer/config.json    a config of ic_jax.config
    transformer/*.safetensors  parameters by path, in the layout of the modules
    transformer/published.json the published config, for the way back to PyTorch
    transformer/pipeline.json  the published pipeline's class, if it is another than FluxPipeline
    adapter/, siglip/, dinov2/, t5/, clip/, vae/: the same
    siglip/unused.safetensors  published tensors that no module has, for the way back
    scheduler/config.json      noise schedule
    sampling/config.json       default sampling settings
    tokenizer/, tokenizer_2/   tokenizer.json, and the published files of CLIP's and T5's tokenizer

Any component may be missing. A README.md, the model card, is not in the manifest.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ic_jax.files import as_json, atomic_folder, atomic_write, copy_file, write_json
from ic_jax.host_memory import free_host_memory
from ic_jax.untrusted_files import read_bytes, read_json
from ic_jax.version import __version__
from ic_jax.weights import safetensors_io
from ic_jax.weights.reading import ByteBudget, FileToRead, Use, read_files
from ic_jax.weights.safetensors_io import Spec
from ic_jax.weights.tensors import Tensor, WeightsError

MANIFEST, CONFIG, UNUSED = "manifest.json", "config.json", "unused.safetensors"
MODEL_CARD = "README.md"
PARAMETERS = "model"  # what the names of their files begin with
FORMAT = 1
SHARD_BYTES = 2_000_000_000  # of a file of parameters, so that many threads have one to read
READING_SHARE = 0.25  # of the free memory, for what threads read and have not used yet
PIPELINE_FILE, KONTEXT = "pipeline.json", "FluxKontextPipeline"
SMALL_MODEL = Path(__file__).parent.parent / "small_model"  # bundled with the library
HUB_IDS = {  # options of `convert from-torch` -> Hub ids of the published weights
    "flux": "black-forest-labs/FLUX.1-dev",
    "adapter": "tencent/InstantCharacter",
    "siglip": "google/siglip-so400m-patch14-384",
    "dinov2": "facebook/dinov2-giant",
}
COMPONENT_NAMES = (
    *("transformer", "adapter", "siglip", "dinov2", "t5", "clip", "vae"),
    *("scheduler", "sampling", "tokenizer", "tokenizer_2"),
)


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class ModelFolder:
    """A MODEL folder opened for reading."""

    path: Path
    components: dict[str, dict[str, FileEntry]]  # component -> file name -> entry

    @classmethod
    def open(cls, path: "str | Path | ModelFolder") -> "ModelFolder":
        """Read the manifest and check the sizes of all files; return an opened folder as it is.

        Raises:
            FileNotFoundError: no such folder.
            WeightsError: not a MODEL folder, or a file is missing or truncated.
        """
        if isinstance(path, ModelFolder):
            return path
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder")
        folder = cls(path, _read_manifest(path))
        for component, name, entry in folder.files():
            file = path / component / name
            size = file.stat().st_size if file.is_file() else None
            if size is None:
                raise WeightsError(f"{file}: is missing; convert or copy the model again")
            if size != entry.size:
                raise WeightsError(
                    f"{file}: {size} bytes, expected {entry.size}; convert or copy the model again"
                )
        return folder

    @property
    def pipeline_class(self) -> str:
        """Class of the published pipeline in diffusers, as far as is known."""
        if PIPELINE_FILE not in self.components.get("transformer", {}):
            return "FluxPipeline"
        return self.json("transformer", PIPELINE_FILE)["_class_name"]

    @property
    def is_kontext(self) -> bool:
        """Whether the model is known as FLUX.1 Kontext, whose tensors are those of FLUX.1-dev."""
        return self.pipeline_class == KONTEXT

    def files(
        self, components: Iterable[str] | None = None
    ) -> Iterator[tuple[str, str, FileEntry]]:
        """Yield component, file name and entry of every file of `components`, by default all."""
        for component in self.components if components is None else components:
            for name, entry in self.components.get(component, {}).items():
                yield component, name, entry

    def verify(self, components: Iterable[str] | None = None, *, parameters: bool = True) -> None:
        """Compare the SHA-256 of every file; raise WeightsError with those that differ.

        Args:
            components: names of components, by default all.
            parameters: whether also of the files that `read_parameters` reads.
        """
        self._read(
            FileToRead(self.path / component / name, entry.size, entry.sha256)
            for component, name, entry in self.files(components)
            if parameters or not _holds_parameters(name)
        )

    def read_parameters(
        self, component_uses: Mapping[str, Mapping[str, Sequence[Use]]], *, verify: bool
    ) -> None:
        """Read the files of parameters of several components, each once, in threads.

        Args:
            component_uses: by component and file name, what is done with its tensors; see
                `FileToRead`.
            verify: compare the SHA-256 of what is read.

        Raises:
            WeightsError: files differ from their checksum; their tensors have been used already.
        """
        self._read(
            FileToRead(
                self.path / component / name,
                entry.size,
                entry.sha256 if verify else None,
                component_uses[component].get(name, ()),
            )
            for component, name, entry in self.files(component_uses)
            if _holds_parameters(name)
        )

    def _read(self, files: Iterable[FileToRead]) -> None:
        budget = ByteBudget(int(READING_SHARE * (free_host_memory() or 16e9)))
        if bad := [str(path.relative_to(self.path)) for path in read_files(files, budget)]:
            raise WeightsError(
                f"{self.path}: {len(bad)} files differ from their checksum: {', '.join(bad[:10])}; "
                "convert or copy the model again"
            )

    def json(self, component: str, name: str = CONFIG) -> dict[str, Any]:
        """Read a JSON object of a component.

        Raises:
            WeightsError: the model lacks the component, or the file holds no object.
        """
        if component not in self.components:
            has = ", ".join(self.components)
            raise WeightsError(
                f"{self.path}: has no {component}, only {has}; convert a model that has it"
            )
        path = self.path / component / name
        try:
            values = read_json(path)
        except (ValueError, FileNotFoundError):
            values = None
        if not isinstance(values, dict):
            raise WeightsError(f"{path}: is no JSON object; convert or copy the model again")
        return values

    def tensors(self, component: str) -> dict[str, Tensor]:
        """Return the parameters of a component by path, from all its shards."""
        shards = self.shards(component).values()
        return {path: tensor for shard in shards for path, tensor in shard.items()}

    def shards(self, component: str) -> dict[str, dict[str, Tensor]]:
        """Return the parameters of a component by file name and path."""
        shards: dict[str, dict[str, Tensor]] = {}
        seen: set[str] = set()
        for name in filter(_holds_parameters, self.components[component]):
            path = self.path / component / name
            shards[name] = safetensors_io.read_tensors(path)
            if twice := sorted(seen & shards[name].keys()):
                raise WeightsError(
                    f"{path}: holds {twice[0]}, as another shard does; convert again"
                )
            seen |= shards[name].keys()
        return shards

    def unused(self, component: str) -> dict[str, Tensor]:
        """Return the published tensors, by published name, that the component's module lacks."""
        if UNUSED not in self.components[component]:
            return {}
        return safetensors_io.read_tensors(self.path / component / UNUSED)


def _holds_parameters(name: str) -> bool:
    return name.endswith(".safetensors") and name != UNUSED


def not_converted(name: str) -> WeightsError:
    """Return the error for a folder or Hub repository without a manifest: how to convert it."""
    words = {"instantcharacter": "adapter", "siglip": "siglip", "dinov2": "dinov2"}
    option = next((o for word, o in words.items() if word in Path(name).name.lower()), "flux")
    sources = " ".join(f"--{o} {source}" for o, source in (HUB_IDS | {option: name}).items())
    return WeightsError(
        f"{name}: is not an ic_jax model (no {MANIFEST}); if it holds published weights, convert "
        f"them, from a checkout of ic_jax: python -m convert from-torch {sources} --out MODEL"
    )


def _read_manifest(folder: Path) -> dict[str, dict[str, FileEntry]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise not_converted(str(folder))
    try:
        manifest = read_json(path)
        if manifest["format"] != FORMAT:
            raise WeightsError(
                f"{path}: format {manifest['format']}, this version reads {FORMAT}; "
                "convert the model again"
            )
        components = {
            component: {name: FileEntry(**entry) for name, entry in files.items()}
            for component, files in manifest["components"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: is damaged; convert or copy the model again") from None
    for component, files in components.items():
        for name in (component, *files):
            if Path(name).name != name:
                raise WeightsError(f"{path}: {name!r} is not a plain file name")
        if component not in COMPONENT_NAMES:
            raise WeightsError(
                f"{path}: unknown component {component}; known are {', '.join(COMPONENT_NAMES)}"
            )
    return components


class ModelWriter:
    """Writer of the components of a new MODEL folder, returned by `create`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.components: dict[str, dict[str, FileEntry]] = {}

    def add_tensors(
        self,
        component: str,
        specs: Mapping[str, Spec],
        chunks: Callable[[str], Iterable[np.ndarray]],
        *,
        unused: bool = False,
    ) -> None:
        """Write the parameters of a component; see `safetensors_io.write_tensors`."""
        stem = UNUSED.removesuffix(".safetensors") if unused else PARAMETERS
        folder = self._component(component)
        for file in safetensors_io.write_tensors(folder, stem, specs, chunks, SHARD_BYTES):
            self.components[component][file.path.name] = FileEntry(file.size, file.sha256)

    def add_file(self, component: str, name: str, content: bytes) -> None:
        """Write a file of a component."""
        atomic_write(self._component(component) / name, content)
        digest = hashlib.sha256(content).hexdigest()
        self.components[component][name] = FileEntry(len(content), digest)

    def add_config(self, component: str, values: dict[str, Any]) -> None:
        """Write the config.json of a component."""
        self.add_file(component, CONFIG, as_json(values))

    def add_from(self, model: ModelFolder, component: str) -> None:
        """Take a component of another model unchanged, by hard links if the disk allows them."""
        folder = self._component(component)
        for _, name, entry in model.files([component]):
            source = model.path / component / name
            try:
                os.link(source, folder / name)
            except OSError:  # another disk
                copy_file(source, folder / name)
            self.components[component][name] = entry

    def add_extras(self, model: ModelFolder, component: str) -> None:
        """Copy a component from another model, but parameters and files already written."""
        written = self.components[component]
        for name in model.components.get(component, {}):
            if name not in written and not name.startswith(PARAMETERS):
                self.add_file(component, name, read_bytes(model.path / component / name))

    def _component(self, component: str) -> Path:
        self.components.setdefault(component, {})
        path = self.folder / component
        path.mkdir(exist_ok=True)
        return path


@contextmanager
def create(out: str | Path, *, overwrite: bool = False) -> Iterator[ModelWriter]:
    """Write a MODEL folder atomically: it appears at `out` when the `with` block ends.

    Raises:
        FileExistsError: `out` exists and may not be replaced.
    """
    out, owned = Path(out), {*COMPONENT_NAMES, MANIFEST, MODEL_CARD}
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        # It may hold published weights, whose folders have the same names.
        raise FileExistsError(f"{out}: exists and is no ic_jax model; name another folder")
    with atomic_folder(out, overwrite=overwrite, owns=owned.__contains__) as folder:
        writer = ModelWriter(folder)
        yield writer
        components = {
            component: {name: vars(entry) for name, entry in files.items()}
            for component, files in writer.components.items()
        }
        manifest = {"format": FORMAT, "ic_jax": __version__, "components": components}
        write_json(folder / MANIFEST, manifest)
