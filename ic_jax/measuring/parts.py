"""Parts of a measurement: each stands alone, and its result is on disk as soon as it is known."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ic_jax.cli import say
from ic_jax.files import write_json

LONGEST = 300  # characters of an error's line
TRACEBACK = 6000  # characters, its end


@dataclass(frozen=True)
class Part:
    """One thing to measure."""

    name: str
    seconds: float  # about what it takes at the published size on one GPU
    measure: Callable[[], Mapping[str, Any]]
    uses: Sequence["Part"] = ()  # parts whose weights and programs it makes if they have not

    def seconds_after(self, results: Mapping[str, Any]) -> float:
        """Return what it takes where other parts have these results."""
        more = (part.seconds for part in self.uses if "result" not in results.get(part.name, {}))
        return self.seconds + sum(more)


class Budget:
    """Seconds that a measurement may take in all; None is without end."""

    def __init__(self, seconds: float | None):
        self.seconds, self._start = seconds, time.monotonic()

    @property
    def left(self) -> float:
        spent = time.monotonic() - self._start
        return float("inf") if self.seconds is None else self.seconds - spent

    def lacks(self, seconds: float) -> str:
        """Return why something that takes `seconds` is skipped."""
        return f"{max(self.left, 0):.0f} s left, about {seconds:.0f} s needed"


class Results:
    """Results by part, in a JSON file that is whole after every part."""

    def __init__(self, facts: Mapping[str, Any], file: Path | None):
        self.parts: dict[str, Any] = {}
        self.facts, self._file = dict(facts), file

    def put(self, name: str, entry: Mapping[str, Any]) -> None:
        """Set the entry of a part, and write the file."""
        self.parts[name] = dict(entry)
        self.write()

    def write(self) -> None:
        """Write the file, if there is one."""
        if self._file is not None:
            write_json(self._file, {**self.facts, "parts": self.parts})


def measure(parts: Sequence[Part], results: Results, budget: Budget) -> None:
    """Measure the parts in order.

    A part is skipped if the time that is left is too short for it; a failure is recorded and passed
    over. An entry has the key "result", "skipped", "failed" (with "traceback") or "interrupted";
    "running", with the seconds that it takes about, while it is measured, which stays if the
    process dies.
    """
    results.write()  # at once, if it cannot be
    for part in parts:
        if budget.left < (seconds := part.seconds_after(results.parts)):
            results.put(part.name, {"skipped": budget.lacks(seconds)})
            say(f"{part.name}: skipped, {budget.lacks(seconds)}")
            continue
        results.put(part.name, {"running": seconds})
        start = time.perf_counter()
        try:
            entry: dict[str, Any] = {"result": part.measure()}
        except Exception as error:
            entry = {"failed": one_line(error), "traceback": traceback.format_exc()[-TRACEBACK:]}
        except KeyboardInterrupt:
            results.put(part.name, {"interrupted": True})
            raise
        results.put(part.name, entry | {"seconds": round(time.perf_counter() - start, 1)})
        show(part.name, results.parts[part.name])


def tried(case: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of a case of a part, or its failure, which takes no other with it."""
    try:
        return case()
    except Exception as error:
        return {"failed": one_line(error)}


def one_line(error: BaseException) -> str:
    """Return an error's kind and message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]


def show(name: str, entry: Mapping[str, Any]) -> None:
    """Print the entry of a part; lists, such as that of single kernels, are left to the file."""
    if "failed" in entry:
        say(f"{name}: failed, {entry['failed']}")
        return
    say(f"{name} ({entry['seconds']} s)")
    for key, value in entry["result"].items():
        if isinstance(value, Mapping):
            plain = {k: v for k, v in value.items() if not isinstance(v, dict | list)}
            value = ", ".join(f"{k} {v}" for k, v in plain.items())
        if not isinstance(value, list):
            say(f"  {key}: {value}")
