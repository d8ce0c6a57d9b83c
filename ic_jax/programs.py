"""Compiled programs that outlive the process, so that a second start neither traces nor compiles.

JAX's compilation cache goes by the lowered program, so that every start traces and lowers to look
it up. Here what decides a program is known before: its arguments' structure, shapes and places,
the devices, the versions, the settings, and the source. See `ic_jax.program_file` for the files.
"""

import os
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from ic_jax import peers
from ic_jax.program_file import ProgramFile

_folder: Path | None = None  # where programs are kept now


def kept() -> AbstractContextManager[None]:
    """Keep what is compiled within in the user's cache directory, ~/.cache/ic_jax/programs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return kept_in(root / "ic_jax" / "programs")


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

    def __init__(
        self,
        function: Callable,
        *,
        static: Sequence[str] = (),
        donate: Sequence[int] = (),
        out_shardings: Any = None,
    ):
        """As `jax.jit` takes them.

        Args:
            function: goes by its name and its package's source, so it must not close over anything
                that decides what it computes.
            static: names of arguments that are compiled in, to be given by name. They are told
                apart by what they print.
            donate: numbers of the arguments whose memory the results take.
            out_shardings: where the results lie: a tree of shardings, None where JAX may choose.
        """
        options = {} if out_shardings is None else {"out_shardings": out_shardings}
        self._function, self._static, self._donate = function, frozenset(static), tuple(donate)
        self._places = [place for place in jax.tree.leaves(out_shardings) if place is not None]
        self._out = jax.tree.map(_Place, out_shardings)
        self._jitted = jax.jit(
            function, static_argnames=tuple(static), donate_argnums=self._donate, **options
        )
        self._ready: dict[Hashable, Callable] = {}

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if _folder is None:
            return self._jitted(*arguments, **named)
        static = {name: named.pop(name) for name in self._static & named.keys()}
        leaves, tree = jax.tree.flatten((arguments, named))
        key = (tree, *map(_kind, leaves), *sorted(static.items()), jax.sharding.get_mesh())
        if key in self._ready:
            return self._ready[key](*arguments, **named)
        devices = _devices(leaves, self._places)
        decided = (*key, self._donate, *jax.tree.flatten(self._out))
        file = ProgramFile(_folder, self._function, decided, devices)
        found = file.read(tree)
        if found is not None:
            spare = [(i, _OnHost(arguments[i])) for i in self._donate]
            try:
                # What was read may load and not run; waiting once makes that known here.
                result = jax.block_until_ready(found(*arguments, **named))
                self._ready[key] = found
                return result
            except jax.errors.JaxRuntimeError as error:
                # Of several hosts another one may have ended: that says nothing of the file.
                if "RESOURCE_EXHAUSTED" in str(error) or peers.several():
                    raise
                file.warn()
                given = list(arguments)
                with jax.transfer_guard("allow"):
                    for i, copy in spare:
                        given[i] = copy.instead_of(given[i])
                arguments = tuple(given)
        self._ready[key] = file.compiled(self._jitted.lower(*arguments, **named, **static))
        return self._ready[key](*arguments, **named)


class _OnHost:
    """A copy of what is donated, in this host's memory: a program that fails when it runs has
    taken its arguments with it. Saving a state copies as much."""

    def __init__(self, tree: Any):
        self._pieces = [_pieces(x) for x in jax.tree.leaves(tree)]

    def instead_of(self, tree: Any) -> Any:
        """The tree, with what is gone of it made again where it lay."""
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, map(_again, leaves, self._pieces))


def _pieces(x: jax.Array) -> dict[str, np.ndarray]:
    """What this host has of an array, by where in it that is."""
    pieces: dict[str, np.ndarray] = {}
    for piece in x.addressable_shards:
        if str(piece.index) not in pieces:  # each once, however many devices have it
            # A copy: of a CPU's array JAX gives a view.
            pieces[str(piece.index)] = np.array(jax.device_get(piece.data))
    return pieces


def _again(x: jax.Array, pieces: dict[str, np.ndarray]) -> jax.Array:
    if not x.is_deleted():
        return x
    return jax.make_array_from_callback(x.shape, x.sharding, lambda index: pieces[str(index)])


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


def _devices(leaves: Sequence[Any], results: Sequence[Sharding]) -> list[Any]:
    """What a program of these arguments, whose results lie there, runs on."""
    mesh = jax.sharding.get_mesh()
    if mesh.axis_names:
        return list(mesh.devices.flat)
    places = [x.sharding for x in leaves if isinstance(x, jax.Array) and x.committed]
    return next((_ordered(place) for place in (*places, *results)), [jax.local_devices()[0]])


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
