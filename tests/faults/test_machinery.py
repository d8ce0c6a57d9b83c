"""The suite's own machinery, in a few seconds: one kill, recorded, not repeated, in the table."""

import re

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.processes import CONVERT, Running, start_server
from tests.faults.records import BEGIN, DOCS, END, SURVIVED, Records
from tests.faults.suite import Suite

NAME = "convert to-torch"


@pytest.fixture
def small(tmp_path, tiny_model):
    """A suite of its own, whose server knows the converter alone."""
    (tmp_path / "docs.md").write_text(f"before\n{BEGIN}{END}after\n")
    start_server(CONVERT, tmp_path / "compiled")
    suite = Suite(tmp_path, Records(tmp_path / "results.json", tmp_path / "docs.md"))
    suite.world.converted = tiny_model
    return suite


def test_a_kill_is_recorded_and_not_repeated(small, tmp_path):
    done = []

    def body(rng, folder):
        told, ended = small.disturb(NAME, 0, rng, folder, Running.kill_after)
        assert ended.code == -9
        small.check_whole(NAME, folder)
        small.finish(NAME, folder)
        done.append(told)
        return told

    for _ in range(2):
        small.trial("killed", NAME, 0, COMMANDS[NAME].under_test, body)
    (told,) = done
    assert 0 < told["after"] < told["usual"]
    trial = Records(tmp_path / "results.json").values["trials"]["killed"][NAME]["0"]
    assert trial["outcome"] == SURVIVED
    assert f"| killed | {NAME} | 1 | 1 |  |" in (tmp_path / "docs.md").read_text()


def test_what_is_lost_is_shown(small, tmp_path):
    def body(rng, folder):
        raise AssertionError("nothing came back")

    with pytest.raises(AssertionError):
        small.trial("killed", NAME, 0, (), body)
    assert "lost: nothing came back" in (tmp_path / "results.json").read_text()
    assert f"| killed | {NAME} | 1 | 0 |  |" in (tmp_path / "docs.md").read_text()


def test_the_table_is_that_of_the_record():
    table = re.search(f"{BEGIN}(.*){END}", DOCS.read_text(), re.DOTALL)
    assert table is not None
    assert table[1] == Records().table()
