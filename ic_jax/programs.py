"""Compiled programs kept as files, so that a second start neither traces nor compiles them.

JAX's compilation cache goes by the lowered program, so that every start traces and lowers to look
it up. Here what decides a program is known before: its arguments' structure, shapes and places,
the devices, the versions, the settings, and the library's source. A file that is damaged, or made
with something else, is compiled anew and replaced.

Such a file is a pickle in JAX's API, and machine code: whoever writes one runs code as whoever
reads it. They are read only from a folder of the user's own that nobody else can write to, and
never from a model's.
"""

import hashlib
import json
import os
import pickle
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.sharding import NamedSharding

from ic_jax.version import __version__

# Settings of JAX that say nothing about what a program computes.
_IRRELEVANT = re.compile("cache|log|dump|traceback|timeout|address|platform|num_cpu")

_folder: Path | None = None  # where programs are kept now


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Keep every `Program` that is compiled within as a file of `folder`, which is made.

    Where that is not safe or not possible a warning says so, and programs are compiled.
    """
    global _folder
    before = _folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _folder = folder if _is_own(folder) else None
    except OSError as error:
        _folder = None
        warnings.warn(f"{folder}: no programs are kept ({error.strerror})", stacklevel=3)
    try:
        yield
    finally:
        _folder = before


class Program:
    """A function under jit; within `kept_in` its compiled programs outlive the process."""

    def __init__(self, function: Callable, *, static: Sequence[str] = ()):
        """`static` names the arguments that are compiled in, to be given by name."""
        self._name, self._static = function.__name__.strip("_"), frozenset(static)
        self._jitted = jax.jit(function, static_argnames=tuple(static))
        self._ready: dict[Hashable, Callable] = {}

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if _folder is None:
            return self._jitted(*arguments, **named)
        static = {name: named.pop(name) for name in self._static & named.keys()}
        leaves, tree = jax.tree.flatten((arguments, named))
        key = (tree, *map(_kind, leaves), *sorted(static.items()), jax.sharding.get_mesh())
        if key in self._ready:
            return self._ready[key](*arguments, **named)
        file = _File(_folder, self._name, key, _devices(leaves))
        found = file.read(tree)
        if found is not None:
            try:
                # What was read may load and not run; waiting once makes that known here.
                result = jax.block_until_ready(found(*arguments, **named))
                self._ready[key] = found
                return result
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise
                file.warn()
        self._ready[key] = file.compiled(self._jitted.lower(*arguments, **named, **static))
        return self._ready[key](*arguments, **named)


class _File:
    """One program's file. Its name says all that decides the program but what a newer version,
    another source or another setting replaces; those are compared."""

    def __init__(self, folder: Path, name: str, key: tuple, devices: Sequence[Any]):
        self._devices = devices
        tree, *rest, mesh = key
        ids = [d.id for d in mesh.devices.flat] if mesh.axis_names else []
        text = f"{tree} {rest} {mesh} {ids} {_machine(tuple(devices))}"
        decided = re.sub(r" at 0x[0-9a-f]+", "", text)  # functions, by their names
        self._path = folder / f"{name}-{hashlib.sha256(decided.encode()).hexdigest()[:32]}"
        self._made_with = _made_with()

    def read(self, tree: Any) -> Callable | None:
        """The program for arguments of this structure; None if it is to be compiled."""
        try:
            head, _, payload = self._path.read_bytes().partition(b"\n")
        except OSError:
            return None
        try:
            header = json.loads(head)
            if header["sha256"] != hashlib.sha256(payload).hexdigest():
                raise ValueError("not what was written")
            if header["made with"] != self._made_with:
                return None
            program, results = pickle.loads(payload)
            return serialize_executable.deserialize_and_load(
                program,
                tree,
                results,
                backend=self._devices[0].client,
                execution_devices=self._devices,
            )
        except Exception:  # whatever the platform has against it, compiling is the answer
            self.warn()
            return None

    def warn(self) -> None:
        """That the file is of no use."""
        warnings.warn(
            f"{self._path}: a compiled program was damaged; it is removed and made anew",
            stacklevel=4,
        )
        with suppress(OSError):
            self._path.unlink()

    def compiled(self, lowered: jax.stages.Lowered) -> Callable:
        """Compile, and write the file whole or not at all."""
        program, fresh = _compile(lowered)
        if not fresh:  # what a CPU read from JAX's cache it cannot write again
            return program
        try:
            serialized, _, results = serialize_executable.serialize(program)
            payload = pickle.dumps((serialized, results))
            digest = hashlib.sha256(payload).hexdigest()
            head = json.dumps({"sha256": digest, "made with": self._made_with})
            _write(self._path, head.encode() + b"\n" + payload)
        except Exception as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            warnings.warn(f"{self._path}: the program is not kept ({reason})", stacklevel=4)
        return program


def _kind(x: Any) -> tuple:
    """What a program depends on of one argument."""
    if isinstance(x, jax.Array):
        return x.shape, x.dtype, x.weak_type, _Place(x.sharding) if x.committed else None
    return np.shape(x), np.result_type(x)


class _Place:
    """A sharding, which tells its devices apart in text too."""

    def __init__(self, sharding: Any):
        self._sharding = sharding

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and self._sharding == other._sharding

    def __hash__(self) -> int:
        return hash(self._sharding)

    def __repr__(self) -> str:
        return f"{self._sharding} {[d.id for d in _ordered(self._sharding)]}"


def _ordered(sharding: Any) -> list[Any]:
    if isinstance(sharding, NamedSharding):
        return list(sharding.mesh.devices.flat)
    return sorted(sharding.device_set, key=lambda device: device.id)


def _devices(leaves: Sequence[Any]) -> list[Any]:
    """What a program of these arguments runs on."""
    mesh = jax.sharding.get_mesh()
    if mesh.axis_names:
        return list(mesh.devices.flat)
    places = (x.sharding for x in leaves if isinstance(x, jax.Array) and x.committed)
    return next((_ordered(place) for place in places), [jax.local_devices()[0]])


def _machine(devices: tuple[Any, ...]) -> str:
    """Platform, its compiler, what the devices are, and which process of how many this is."""
    first = devices[0]
    kinds = sorted({d.device_kind for d in devices})
    processor = _processor() if first.platform == "cpu" else ""
    processes = f"{jax.process_index()} of {jax.process_count()}"
    versions = [jax.__version__, version("jaxlib"), first.client.platform_version]
    return f"{first.platform} {versions} {len(devices)} {kinds} {processor} process {processes}"


@cache
def _processor() -> str:
    """What code for this CPU may use."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return hashlib.sha256(line.encode()).hexdigest()
    return f"{platform.machine()} {platform.processor()}"


def _made_with() -> dict[str, str]:
    """What decides a program beside its arguments and devices."""
    settings = {k: repr(v) for k, v in jax.config.values.items() if not _IRRELEVANT.search(k)}
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    return {
        "ic_jax": __version__,
        "source": _source(),
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "flax": version("flax"),
        "settings": hashlib.sha256(repr((sorted(settings.items()), flags)).encode()).hexdigest(),
    }


@cache
def _source() -> str:
    """The library's own code: a version stays the same while somebody works on it."""
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, bool]:
    """The compiled program, and whether it was compiled now: not read from JAX's own cache."""
    read: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            read.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        return lowered.compile(), not read
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _write(path: Path, data: bytes) -> None:
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _is_own(folder: Path) -> bool:
    """Whether nobody else can write there; a warning says so otherwise."""
    if not hasattr(os, "getuid"):  # Windows: a home is its user's own
        return True
    found = folder.stat()
    if found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return True
    warnings.warn(
        f"{folder}: no programs are kept, since others can write there; make it yours alone "
        "(chmod 700), or remove it",
        stacklevel=4,
    )
    return False
