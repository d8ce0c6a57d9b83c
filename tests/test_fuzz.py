"""Every reader reads a damaged file, or says in its own line why not (`python -m tests.fuzz`)."""

import json
from pathlib import Path

import pytest

from tests.fuzz.__main__ import RESULTS, table
from tests.fuzz.cases import CASES, kept
from tests.fuzz.judge import Finding, judge
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS
from tests.fuzz.rounds import Tally, fuzz

SLOW = {"dataset", "tokenizer"}  # readers of which a case takes more than a few milliseconds


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_a_line(name, tmp_path):
    """Replay the cases that were found, then try a few new ones, the same in every run."""
    reader = READERS[name]
    folder = tmp_path / "files"
    folder.mkdir()
    reader.write(folder)
    reader.read(folder)
    for file, data in kept(name):
        judge(reader, folder, file, data)
    tally = Tally()
    fuzz(reader, folder, tally, rounds=1, examples=2 if name in SLOW else 10)
    assert tally.findings == {}
    assert tally.outcomes["finding"] == 0


def bad(error):
    def read(folder: Path):
        if (folder / "a").read_bytes() != b"valid":
            raise error

    return Reader(lambda folder: (folder / "a").write_bytes(b"valid"), read)


@pytest.mark.parametrize(
    "error", [KeyError("a"), TypeError("a"), MemoryError(), ValueError("int() of a"), OSError("a")]
)
def test_other_errors_are_findings_that_are_made_small(tmp_path, error):
    reader = bad(error)
    folder = tmp_path / "files"
    folder.mkdir()
    reader.write(folder)
    tally = Tally()
    fuzz(reader, folder, tally, rounds=1, examples=20)
    (case,) = tally.cases.values()
    assert case[0] == "a"
    with pytest.raises(Finding):
        judge(reader, folder, *case)


def test_too_much_memory_is_a_finding(tmp_path):
    reader = Reader(lambda folder: (folder / "a").touch(), lambda folder: b"x" * 2**27)
    reader.write(tmp_path)
    with pytest.raises(Finding, match="memory: 1"):
        judge(reader, tmp_path, "a", b"")


def test_cases_are_of_readers_that_are_there():
    assert {folder.name for folder in CASES.iterdir()} <= set(READERS)


def test_the_page_has_the_figures_of_the_last_run():
    results = json.loads(RESULTS.read_text())
    assert set(results["readers"]) == set(READERS)
    page = (Path(__file__).parent.parent / "docs" / "reliability.md").read_text()
    assert table(results) in page
