"""Training state on disk: saved asynchronously by Orbax, trusted only with a checksum.

Orbax commits a step atomically, but loads flipped bits in silence and takes an empty directory
for the newest step. So a step counts only once its manifest, the SHA-256 of every file, stands
beside it; whatever has none, or differs, is set aside and never deleted or counted.

    RUN/checkpoints/1500/...     Orbax's
    RUN/manifests/1500.json      written after it
    RUN/set-aside/               what could not be trusted
"""

import json
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ic_jax import multihost
from ic_jax.config import ConfigError
from ic_jax.files import sha256_file, write_json
from train.recipe import Saving


class Checkpoints:
    """The checkpoints of one run.

    `read_only` leaves everything as it is, for a look at a run that may be going on.
    """

    def __init__(self, run: Path, saving: Saving, *, read_only: bool = False):
        self._steps, self._manifests = run / "checkpoints", run / "manifests"
        self._aside = run / "set-aside"
        for folder in (self._steps, self._manifests):
            folder.mkdir(parents=True, exist_ok=True)
        if not read_only:
            multihost.on_first("checkpoints", self._set_aside_untrusted)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=saving.keep,
            keep_period=saving.keep_every or None,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self._steps.absolute(), options=options)
        self._committer = ThreadPoolExecutor(1)
        self._pending: Future | None = None

    @property
    def latest(self) -> int | None:
        return max(self.steps, default=None)

    def save(self, step: int, state: Any, facts: dict[str, Any]) -> None:
        """Start saving; the arrays are copied before this returns. All hosts save together.

        Args:
            facts: JSON values that a resumed run is compared with (sizes, seed, data).

        Raises:
            OSError: the save before this one failed.
        """
        self.wait()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_flat(state)),
                facts=ocp.args.JsonSave(facts | {"arrays": _arrays(state)}),
            ),
            force=True,
        )
        self._pending = self._committer.submit(self._commit, step)

    def wait(self) -> None:
        """Return when everything is committed; raises what went wrong, OSError as a rule."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    @property
    def steps(self) -> list[int]:
        """All that are kept and have their manifest."""
        kept = self._manager.all_steps()
        return sorted(step for step in kept if self._manifest(step).exists())

    def restore(self, abstract: Any, facts: dict[str, Any], step: int | None = None) -> Any:
        """A state, by default the newest, laid out as `abstract` (shapes, dtypes, shardings).

        Raises:
            ConfigError: the run was started with other sizes, types, seed or data; names it.
        """
        step = self.latest if step is None else step
        assert step is not None
        saved, facts = self.facts(step), json.loads(json.dumps(facts))  # tuples are lists there
        for name in facts:
            if saved.get(name) != facts[name]:
                raise ConfigError(
                    f"{self._steps / str(step)}: {name} was {saved.get(name)} and is now "
                    f"{facts[name]}; go on with the old one, or start another run"
                )
        # Orbax casts a wrong type in silence, and says of a wrong shape what nobody can read.
        expected = _arrays(abstract)
        for name in sorted(expected.keys() | saved["arrays"].keys()):
            was, now = saved["arrays"].get(name), expected.get(name)
            if was != now:
                raise ConfigError(
                    f"{self._steps / str(step)}: {name} was {was} and is now {now}; go on with "
                    "the old model and recipe, or start another run"
                )
        flat = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_flat(abstract)))
        ).state
        structure = jax.tree.structure(abstract)
        return jax.tree.unflatten(structure, [flat[name] for name in expected])

    def verify(self, step: int) -> None:
        """ConfigError if a step's files are not what its manifest says."""
        folder = self._steps / str(step)
        if not self._trusted(folder):
            raise ConfigError(f"{folder}: is damaged; name another --step, or go on training")

    def facts(self, step: int) -> dict[str, Any]:
        """What was saved as facts with a step."""
        return self._manager.restore(
            step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
        ).facts

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._committer.shutdown()
            self._manager.close()

    def _commit(self, step: int) -> None:
        self._manager.wait_until_finished()  # when all hosts have written
        if not multihost.is_first():
            return
        write_json(self._manifest(step), _digests(self._steps / str(step)))
        kept = set(self._manager.all_steps())
        for manifest in self._manifests.glob("*.json"):
            if int(manifest.stem) not in kept:
                manifest.unlink()

    def _manifest(self, step: int) -> Path:
        return self._manifests / f"{step}.json"

    def _set_aside_untrusted(self) -> None:
        for folder in sorted(self._steps.iterdir()):
            if not folder.name.isdecimal() or self._trusted(folder):
                continue
            self._aside.mkdir(exist_ok=True)
            numbers = (f"{folder.name}.{n}" for n in range(1000))
            place = next(
                self._aside / name for name in numbers if not (self._aside / name).exists()
            )
            folder.rename(place)
            warnings.warn(
                f"{folder}: checkpoint is incomplete or damaged; set aside as {place}",
                stacklevel=3,
            )

    def _trusted(self, folder: Path) -> bool:
        try:
            expected = json.loads(self._manifest(int(folder.name)).read_text())
        except (OSError, ValueError):
            return False
        return expected == _digests(folder)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(file.relative_to(folder)): sha256_file(file) for file in files}


def _names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _arrays(tree: Any) -> dict[str, str]:
    """Each leaf's type and shape, by path."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in _flat(tree).items()}


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path: what is on disk does not depend on classes of this program."""
    return dict(zip(_names(tree), jax.tree.leaves(tree), strict=True))
