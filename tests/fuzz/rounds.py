"""Rounds of fuzzing: a reader's valid files, damaged by hypothesis, and the findings shrunk."""

import fnmatch
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure

from tests.fuzz.edits import damaged_bytes, damaged_values
from tests.fuzz.judge import Finding, judge
from tests.fuzz.reader import Reader

LAST = "last-case"  # file beside a folder: the name and bytes that are being tried


@dataclass
class Tally:
    """Count of the outcomes of a reader's cases, and its findings by place."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)  # messages
    cases: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # damaged file of each


def damaged(reader: Reader, folder: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    """Return a strategy of (name, bytes) of one damaged file among a reader's valid ones."""
    strategies = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        if name in reader.kept:
            continue
        ways = [damaged_bytes(data)]
        forms = [form for pattern, form in reader.forms.items() if fnmatch.fnmatch(name, pattern)]
        ways += [damaged_values(data, form) for form in forms] * 2
        strategies.append(st.tuples(st.just(name), st.one_of(ways)))
    return st.one_of(strategies)


def fuzz(
    reader: Reader,
    folder: Path,
    tally: Tally,
    *,
    first: int = 0,
    seconds: float = float("inf"),
    rounds: int | None = None,
    examples: int = 200,
    done: Callable[[Tally], None] = lambda _: None,
) -> None:
    """Try damaged files until a time is over or a number of rounds is done, from a seed on.

    Args:
        folder: holds the reader's valid files.
        tally: counts the outcomes; a finding whose place it has already is not shrunk again.
        seconds: of processor time.
        done: called after every round.
    """
    reader.read(folder)  # imports what it needs, and shows that the files are valid
    end, files = time.process_time() + seconds, damaged(reader, folder)
    number = first
    while time.process_time() < end and (rounds is None or number < first + rounds):
        _round(reader, folder, files, tally, number, examples)
        number += 1
        done(tally)


def _round(
    reader: Reader, folder: Path, files: Any, tally: Tally, number: int, examples: int
) -> None:
    last: list[tuple[str, bytes]] = []
    known = set(tally.findings)

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(files)
    def check(case: tuple[str, bytes]) -> None:
        (folder.parent / LAST).write_bytes(case[0].encode() + b"\n" + case[1])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tally.outcomes[judge(reader, folder, *case)] += 1
        except Finding as finding:
            tally.outcomes["finding"] += 1
            if finding.place in known:
                return
            last[:] = [case]
            raise

    try:
        check()
    except Finding as finding:
        tally.findings[finding.place] = str(finding)
        tally.cases[finding.place] = last[0]
    except FlakyFailure:  # on another try the reader passed
        tally.outcomes["unsteady"] += 1
