"""Trials of faults: what each is done to, when, and what is compared afterwards."""

import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.faults.commands import COMMANDS, Command
from tests.faults.processes import Ended, Running, started
from tests.faults.records import SURVIVED, Records, digest
from tests.faults.world import Unmeasured, World

DRAWS = 6  # of a moment, where the process ends before it
Told = dict[str, Any]  # what is recorded of a trial
# Disturbs a process in so many seconds; returns whether it was there to be disturbed.
Act = Callable[[Running, float], bool]


class Suite:
    """The world, the uninterrupted results, and the record."""

    def __init__(self, folder: Path, records: Records, *, again: bool = False):
        """Take an empty folder; `again` repeats what survived before."""
        self.folder, self.records, self.again = folder, records, again
        (folder / "world").mkdir()
        self.world = World(folder / "world")
        self._results: dict[str, Mapping[str, Any]] = {}
        self._usual: dict[str, dict[str, float]] = {}

    def trial(
        self,
        fault: str,
        of: str,
        seed: int,
        under_test: Iterable[str],
        body: Callable[[random.Random, Path], Told],
    ) -> None:
        """Do a trial in a folder of its own and record it, unless it survived before."""
        code = digest(under_test)
        if not self.again and self.records.holds(fault, of, seed, code):
            return
        place = self.folder / f"trial-{time.monotonic_ns()}"
        folder = place / "folder"  # logs and recipes lie beside it
        folder.mkdir(parents=True)
        begin, told, outcome = time.monotonic(), {}, SURVIVED
        try:
            told = body(random.Random(f"{fault}/{of}/{seed}"), folder)
        except Unmeasured:
            raise
        except Exception as error:
            outcome = f"lost: {' '.join(str(error).split())[:300]}"
            raise
        finally:
            if told or outcome != SURVIVED:  # an interrupted trial is none
                seconds = round(time.monotonic() - begin, 1)
                trial = {"outcome": outcome, "seconds": seconds, "digest": code} | told
                self.records.add(fault, of, seed, trial)
            shutil.rmtree(place, ignore_errors=True)

    def start(self, name: str, folder: Path, *, log: str = "log", **limits: Any) -> Any:
        """Start a command in a folder, for a `with` block; what it says is kept beside."""
        command = COMMANDS[name]
        arguments = [*map(str, command.arguments(self.world, folder))]
        arguments += ["--overwrite"] if command.overwrite else []
        return started(command.main, arguments, folder.with_name(log), **limits)

    def expected(self, name: str) -> Mapping[str, Any]:
        """Return what the command leaves undisturbed, after measuring how long it takes."""
        if name not in self._results:
            results = []
            for n in range(2):  # what is compiled by the first is there for the second
                folder = self.folder / f"{name.replace(' ', '-')}-{n}" / "folder"
                folder.mkdir(parents=True, exist_ok=True)
                with self.start(name, folder) as process:
                    self._usual[name] = _spans(COMMANDS[name], folder, process)
                    ended = process.end()
                if ended.code:
                    raise Unmeasured(f"{name} fails undisturbed: {ended.said}")
                results.append(COMMANDS[name].result(folder))
            check_equal(*results)
            self._results[name] = results[0]
        return self._results[name]

    def original(self, name: str) -> Path:
        """Return the folder with what `expected` says."""
        self.expected(name)
        return self.folder / f"{name.replace(' ', '-')}-1" / "folder"

    def usual(self, name: str, span: str) -> float:
        """Return how many seconds a span of a command usually takes."""
        self.expected(name)
        return self._usual[name][span]

    def disturb(
        self,
        name: str,
        seed: int,
        rng: random.Random,
        folder: Path,
        act: Act,
        prepare: Callable[[Path], None] = lambda _: None,
    ) -> tuple[Told, Ended]:
        """Start a command and act at a random moment of one of its spans.

        Where a span is over too soon for that, as the writing of a small file is, the moment is
        one of the command's first span.

        Args:
            prepare: fills the empty folder before.

        Returns:
            The moment, and how the process ended.
        """
        command = COMMANDS[name]
        spans = [*command.spans]
        for span in dict.fromkeys((spans[seed % len(spans)], spans[0])):
            usual, share = self.usual(name, span), 1.0
            for draws in range(1, DRAWS + 1):
                share *= rng.random()
                prepare(folder)
                with self.start(name, folder) as process:
                    there = process.until(lambda span=span: command.spans[span][0](folder))
                    if there and act(process, share * usual):
                        moment = {"span": span, "after": round(share * usual, 4)}
                        return moment | {"usual": round(usual, 4), "draws": draws}, process.end()
                empty(folder)
        raise Unmeasured(f"ended {DRAWS} times before the moment, in every span")

    def finish(self, name: str, folder: Path) -> Ended:
        """Run the command again, which must end as if nothing had happened."""
        expected = self.expected(name)
        with self.start(name, folder) as process:
            ended = process.end()
        assert ended.code == 0, f"the second run ends with {ended.code}:\n{ended.said}"
        check_equal(COMMANDS[name].result(folder), expected)
        return ended

    def check_whole(self, name: str, folder: Path) -> None:
        """Check that what a user would take for finished is so, or is not there."""
        command = COMMANDS[name]

        def part(file: str) -> tuple[str, ...]:
            return Path(file).parts[: command.depth]

        there = command.whole(folder)
        parts = {part(file) for file in there}
        check_equal(there, {k: v for k, v in self.expected(name).items() if part(k) in parts})


def empty(folder: Path) -> None:
    """Remove all that a folder holds."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Check that two results have the same names and values."""
    extra, missing = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    assert not extra, f"left behind: {extra[:5]}"
    assert not missing, f"missing: {missing[:5]}"
    different = [name for name, value in ours.items() if value != theirs[name]]
    assert not different, f"different: {different[:5]}"


def check_told(ended: Ended, *codes: int) -> None:
    """Check that a command failed with one of the exit codes, in one line, without a traceback."""
    assert ended.code in codes, f"exit code {ended.code}:\n{ended.said}"
    assert "Traceback" not in ended.said, ended.said
    errors = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.said


def _spans(command: Command, folder: Path, process: Running) -> dict[str, float]:
    """Return how long each span of a command that runs takes."""
    begins: dict[str, float] = {}
    ends: dict[str, float] = {}

    def look() -> bool:
        now = time.monotonic()
        for name, (begin, end) in command.spans.items():
            if name not in begins and begin(folder):
                begins[name] = now
            elif name in begins and name not in ends and end(folder):
                ends[name] = now
        return False

    process.until(look)
    last = time.monotonic()
    return {name: ends.get(name, last) - begins.get(name, last) for name in command.spans}
