"""Checkpoints of the training state: saved asynchronously by Orbax, verified by checksum.

Orbax commits a step atomically, but loads flipped bits in silence and takes an empty directory
for the newest step. So a step is valid only with a manifest, its number and the SHA-256 of every
file, which is written last. A step without a manifest, or that differs from it, is moved to
quarantine, which keeps the last few.

    RUN/checkpoints/1500/...     written by Orbax
    RUN/manifests/1500.json      written after the checkpoint
    RUN/quarantine/              the last incomplete or damaged checkpoints
"""

import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ic_jax import multihost
from ic_jax.config import ConfigError
from ic_jax.files import check_room, sha256_file, write_json
from ic_jax.untrusted_files import read_json
from train.recipe import Saving

# Fields of the state as older checkpoints name them.
OLD_FIELDS = {
    ".params": ".trained",
    ".ema_params": ".average",
    ".opt_state": ".optimizer",
    ".nonfinite_steps": ".bad",
}
# Metadata that older checkpoints lack, as it was for all of them.
OLD_METADATA = {"optimizer": "adamw"}


MANIFESTS = "manifests"  # folder of the finished checkpoints' checksums, in RUN
QUARANTINED = 2  # incomplete or damaged checkpoints that are kept


def has_checkpoint(run: Path) -> bool:
    """Return whether a RUN folder has a finished checkpoint, valid or not; nothing is opened."""
    return any((run / MANIFESTS).glob("*.json"))


class CheckpointError(ConfigError):
    """Raised where a run has no checkpoint that is whole."""

    exit_code = 3


class Checkpoints:
    """Checkpoints of one run."""

    def __init__(
        self, run: Path, saving: Saving, *, read_only: bool = False, restart: bool = False
    ):
        """Open the folders, and move steps that are not valid to quarantine.

        Args:
            read_only: change nothing on disk, so that a run in progress can be read.
            restart: begin again where every checkpoint is damaged.

        Raises:
            CheckpointError: every checkpoint is damaged, or with `restart` one is whole.
        """
        self._steps, self._manifests = run / "checkpoints", run / MANIFESTS
        self._quarantine = run / "quarantine"
        for folder in (self._steps, self._manifests):
            folder.mkdir(parents=True, exist_ok=True)
        if not read_only:
            multihost.on_first("checkpoints", partial(self._quarantine_invalid, restart))
        # With the processes named, Orbax waits at barriers of the coordination service; otherwise
        # in collectives on the devices, which a step that has lost a process disturbs.
        processes = set(range(multihost.process_count()))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=saving.keep,
            keep_period=saving.keep_every or None,
            enable_async_checkpointing=True,
            # Made in the background, on a busy machine a folder was once written to before it was
            # there (orbax 0.12.8).
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            cleanup_tmp_directories=not read_only,
            create=False,  # Orbax's own read_only says in three warnings that it saves nothing
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=processes),
        )
        self._manager = ocp.CheckpointManager(self._steps.absolute(), options=options)
        self._committer = ThreadPoolExecutor(1)
        self._pending: Future | None = None

    @property
    def latest(self) -> int | None:
        """The newest valid step."""
        return max(self.steps, default=None)

    def check_room(self, state: Any) -> None:
        """Raise OSError if the disk has no room for one checkpoint of the state."""
        if multihost.is_first():
            check_room(self._steps, sum(x.nbytes for x in jax.tree.leaves(state)))

    def save(self, step: int, state: Any, run_metadata: dict[str, Any]) -> None:
        """Start saving; the arrays are copied before this returns.

        Collective: every process must call it.

        Args:
            run_metadata: JSON values that a resumed run is compared with (sizes, seed, data).

        Raises:
            OSError: the save before this one failed.
        """
        self.wait()
        with _system_errors(self._steps):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_flat(state)),
                    facts=ocp.args.JsonSave(run_metadata | {"arrays": _arrays(state)}),
                ),
                force=True,
            )
        self._pending = self._committer.submit(self._commit, step)

    def wait(self) -> None:
        """Wait until all saved steps are committed.

        Raises:
            OSError: the save failed.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    @property
    def steps(self) -> list[int]:
        """All steps that have a manifest, in order."""
        return sorted(step for step in self._manager.all_steps() if self._manifest(step).exists())

    def restore(self, abstract: Any, run_metadata: dict[str, Any], step: int | None = None) -> Any:
        """Return the state of a step (default: the newest) with the shardings of `abstract`.

        Raises:
            ConfigError: names the size, dtype, seed or data in which the saved run differs.
        """
        step = self.latest if step is None else step
        assert step is not None
        saved = self.run_metadata(step)
        for name, value in json.loads(json.dumps(run_metadata)).items():  # tuples become lists
            if saved.get(name) != value:
                raise ConfigError(
                    f"{self._steps / str(step)}: {name} was {saved.get(name)} and is now "
                    f"{value}; continue with the old value, or start another run"
                )
        # Orbax casts another dtype silently, and its error for another shape is unreadable.
        expected = _arrays(abstract)
        rename = OLD_FIELDS if OLD_FIELDS[".nonfinite_steps"] in saved["arrays"] else {}
        expected = {_renamed(name, rename): text for name, text in expected.items()}
        for name in sorted(expected.keys() | saved["arrays"].keys()):
            was, now = saved["arrays"].get(name), expected.get(name)
            if was != now:
                raise ConfigError(
                    f"{self._steps / str(step)}: {name} was {was} and is now {now}; continue "
                    "with the old model and recipe, or start another run"
                )
        leaves, structure = jax.tree.flatten(abstract)
        flat = dict(zip(expected, leaves, strict=True))
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(flat))
        ).state
        return jax.tree.unflatten(structure, [restored[name] for name in expected])

    def verify(self, step: int) -> None:
        """Raise ConfigError if the files of a step differ from its manifest."""
        folder = self._steps / str(step)
        if not self._is_valid(folder):
            raise ConfigError(f"{folder}: is damaged; name another --step, or continue training")

    def run_metadata(self, step: int) -> dict[str, Any]:
        """Return the metadata that was saved with a step, and dtype and shape of its "arrays"."""
        saved = self._manager.restore(
            step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
        ).facts
        return OLD_METADATA | saved

    def close(self) -> None:
        """Wait for the last save, then release the folder."""
        try:
            self.wait()
        finally:
            self._committer.shutdown()
            with _system_errors(self._steps):
                self._manager.close()

    def _commit(self, step: int) -> None:
        with _system_errors(self._steps):
            self._manager.wait_until_finished()  # until all processes have written
        if not multihost.is_first():
            return
        write_json(self._manifest(step), {"step": step, "files": _digests(self._steps / str(step))})
        steps = set(self._manager.all_steps())
        for manifest in self._manifests.glob("*.json"):
            if int(manifest.stem) not in steps:
                manifest.unlink()

    def _manifest(self, step: int) -> Path:
        return self._manifests / f"{step}.json"

    def _quarantine_invalid(self, restart: bool) -> None:
        steps = [folder for folder in self._steps.iterdir() if folder.name.isdecimal()]
        valid = [folder for folder in steps if self._is_valid(folder)]
        committed = list(self._manifests.glob("*.json"))
        if committed and not valid:
            if not restart:
                raise CheckpointError(
                    f"{self._steps}: none of the checkpoints is whole; copy one there again with "
                    "its manifest, or give --restart to begin at step 0"
                )
            for manifest in committed:
                manifest.unlink()
        elif restart and valid:
            newest = max(int(folder.name) for folder in valid)
            raise CheckpointError(
                f"{self._steps}: the checkpoint of step {newest} is whole; leave out --restart to "
                "go on from it, or name another out to begin anew"
            )
        for folder in sorted(set(steps) - set(valid), key=lambda folder: int(folder.name)):
            self._quarantine.mkdir(exist_ok=True)
            names = (self._quarantine / f"{folder.name}.{n}" for n in range(1000))
            target = next(name for name in names if not name.exists())
            folder.rename(target)
            warnings.warn(
                f"{folder}: checkpoint is incomplete or damaged; moved to {target}",
                stacklevel=3,
            )
        if self._quarantine.exists():
            by_age = sorted(self._quarantine.iterdir(), key=lambda folder: folder.stat().st_ctime)
            for folder in by_age[:-QUARANTINED]:
                shutil.rmtree(folder)

    def _is_valid(self, folder: Path) -> bool:
        try:
            manifest = read_json(self._manifest(int(folder.name)))
        except (OSError, ValueError):
            return False
        digests = _digests(folder)
        # Older manifests are the digests alone.
        return manifest in ({"step": int(folder.name), "files": digests}, digests)


@contextmanager
def _system_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the system, which Orbax wraps in others, as OSError that names the folder."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if number := re.search(r"os_error_code='(\d+)'", str(error)):
            code = int(number[1])
        if code is None:
            raise
        file = getattr(error, "filename", None) or folder
        raise OSError(code, os.strerror(code), str(file)) from None


class _RaisedAnyway(logging.Filter):
    """Filter of what Orbax logs with a traceback: it raises the same error afterwards."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.exc_info


logging.getLogger("absl").addFilter(_RaisedAnyway())


def _without_closed_loops(show: Callable[[Any], object]) -> Callable[[Any], object]:
    """Pass over what TensorStore's threads print when one write has failed before the others end.

    They call the event loop of the save, which the first error has closed; that error is raised.
    """

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    return hook


sys.unraisablehook = _without_closed_loops(sys.unraisablehook)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(file.relative_to(folder)): sha256_file(file) for file in files}


def _names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _arrays(tree: Any) -> dict[str, str]:
    """Return dtype and shape of each leaf, by path."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in _flat(tree).items()}


def _flat(tree: Any) -> dict[str, Any]:
    """Return the leaves by path, so that checkpoints do not depend on the classes of the tree."""
    return dict(zip(_names(tree), jax.tree.leaves(tree), strict=True))


def _renamed(path: str, names: dict[str, str]) -> str:
    """Return a leaf's path with its first part renamed."""
    field = re.match(r"\.\w+|", path)[0]  # type: ignore[index]
    return names.get(field, field) + path[len(field) :]
