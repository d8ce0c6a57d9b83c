"""SIGKILL at random moments: what is there is whole, and the command run again ends as usual."""

import shutil

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.processes import Running

pytestmark = pytest.mark.faults
TRIALS = 20


@pytest.mark.parametrize("seed", range(TRIALS))
@pytest.mark.parametrize("name", COMMANDS)
def test_killed(suite, name, seed):
    command = COMMANDS[name]

    def body(rng, folder):
        earlier = command.overwrite and rng.random() < 0.5  # something is there already
        original = suite.original(name)

        def prepare(folder):
            if earlier:
                shutil.copytree(original, folder, dirs_exist_ok=True)

        told, _ = suite.disturb(name, seed, rng, folder, Running.kill_after, prepare)
        suite.check_whole(name, folder)
        suite.finish(name, folder)
        return told | {"over an earlier one": earlier}

    suite.trial("killed at a random moment", name, seed, command.under_test, body)
