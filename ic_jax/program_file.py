"""One compiled program as a file, and all that decides whether it may be used.

A file that is damaged, or made with something else, is compiled anew and replaced.

Such a file is a pickle in JAX's API, and machine code: whoever writes one runs code as whoever
reads it. They are read only from a folder of the user's own that nobody else can write to (see
`ic_jax.programs.kept_in`), and never from a model's.
"""

import hashlib
import json
import os
import pickle
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from ic_jax.version import __version__

# Settings of JAX that say nothing about what a program computes.
_IRRELEVANT = re.compile("cache|transfer_guard|log|dump|traceback|timeout|address|platform|num_cpu")
# Where a function of a module lies in memory; its name says which it is.
_ADDRESS = re.compile(r"(?<=<function )([\w.]+) at 0x[0-9a-f]+")


class ProgramFile:
    """One program's file. Its name says all that decides the program but what a newer version,
    another source or another setting replaces; those are compared."""

    def __init__(self, folder: Path, function: Callable, key: tuple, devices: Sequence[Any]):
        """`key` holds what decides the program, to be printed; `devices` it runs on, in order."""
        self._devices = devices
        ids = [d.id for d in devices]
        where = f"{function.__module__}.{function.__qualname__}"
        text = f"{where} {key} {ids} {_machine(tuple(devices))}"
        decided = _ADDRESS.sub(r"\1", text)
        self._untold = re.search(r"\S+( object)? at 0x[0-9a-f]+", decided)
        name = function.__name__.strip("_")
        self._path = folder / f"{name}-{hashlib.sha256(decided.encode()).hexdigest()[:32]}"
        self._made_with = _made_with(function)

    def read(self, tree: Any) -> Callable | None:
        """The program for arguments of this structure; None if it is to be compiled."""
        if self._untold:
            return None
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
            if self._untold:  # a closure, say: what it closes over is not in its name
                raise ValueError(f"{self._untold[0]} cannot be told from another such")
            serialized, _, results = serialize_executable.serialize(program)
            payload = pickle.dumps((serialized, results))
            digest = hashlib.sha256(payload).hexdigest()
            head = json.dumps({"sha256": digest, "made with": self._made_with})
            _write(self._path, head.encode() + b"\n" + payload)
        except Exception as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            warnings.warn(f"{self._path}: the program is not kept ({reason})", stacklevel=4)
        return program


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


def _made_with(function: Callable) -> dict[str, str | None]:
    """What decides a program beside its arguments and devices."""
    settings = {k: repr(v) for k, v in jax.config.values.items() if not _IRRELEVANT.search(k)}
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    return {
        "ic_jax": __version__,
        "source": _source("ic_jax"),
        "its own": _source(function.__module__.partition(".")[0]),
        **{name: _version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "settings": hashlib.sha256(repr((sorted(settings.items()), flags)).encode()).hexdigest(),
    }


@cache
def _source(package: str) -> str:
    """The code of a package, or of a module in none: a version stays the same while somebody
    works on it."""
    module, found = sys.modules[package], hashlib.sha256()
    files = [f for folder in getattr(module, "__path__", ()) for f in Path(folder).rglob("*.py")]
    for file in sorted(files) or [Path(str(module.__file__))]:
        found.update(file.read_bytes())
    return found.hexdigest()


@cache
def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None  # training's, where only drawing is installed


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
