"""Two of a command in one folder at once: one is refused in a line, or both end whole."""

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.suite import check_equal, check_told

pytestmark = pytest.mark.faults
TRIALS = 3


@pytest.mark.parametrize("seed", range(TRIALS))
@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_once(suite, name, seed):
    command = COMMANDS[name]

    def body(rng, folder):
        expected, second = suite.expected(name), []

        def rival(process, seconds):
            process.process.join(seconds)
            with suite.start(name, folder, log="second") as other:
                second.append(other.end())
            return True

        told, first = suite.disturb(name, seed, rng, folder, rival)
        best, other = sorted([first, *second], key=lambda ended: ended.code)
        assert best.code == 0, best.said
        if other.code:
            check_told(other, 2)
        check_equal(command.result(folder), expected)
        return told | {"exit codes": [best.code, other.code]}

    suite.trial("two at once in one folder", name, seed, command.under_test, body)
