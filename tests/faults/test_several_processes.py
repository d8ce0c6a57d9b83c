"""One of two processes that train together dies: the other ends with a word, and both resume."""

import contextlib
import re
import signal
import socket

import pytest

from tests.faults.commands import COMMANDS, committed, trained
from tests.faults.processes import started
from tests.faults.suite import check_equal, empty
from tests.faults.world import LORA

pytestmark = pytest.mark.faults
TRIALS = 20
KEYS = LORA + 'mesh = "data=2"\n'


class Pair:
    """Two processes of one device each, which train in a folder."""

    def __init__(self, suite):
        self.suite, self.seconds, self.expected = suite, 0.0, None

    @contextlib.contextmanager
    def training(self, folder):
        """Start both."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        world = self.suite.world
        recipe = str(world.recipe(folder, cache=world.cache, keys=KEYS))
        flags = ["--coordinator", address, "--num-processes", "2", "--process-id"]
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(
                    started(
                        "tests.faults.several",
                        [recipe, *flags, str(n)],
                        folder.with_name(f"{n}.log"),
                    )
                )
                for n in range(2)
            ]

    def measure(self):
        """Train undisturbed, once to compile and once for time and result."""
        for n in range(0 if self.expected else 2):
            folder = self.suite.folder / f"pair-{n}" / "folder"
            folder.mkdir(parents=True)
            with self.training(folder) as processes:
                ended = [process.end() for process in processes]
                self.seconds = processes[0].elapsed()
            assert [e.code for e in ended] == [0, 0], ended
            self.expected = trained(folder)


@pytest.fixture(scope="module")
def pair(suite):
    return Pair(suite)


@pytest.mark.parametrize("seed", range(TRIALS))
def test_one_of_two_dies(suite, pair, seed):
    def body(rng, folder):
        pair.measure()
        dead, share, other = seed % 2, rng.random(), None
        while other is None:  # both may have ended before the moment
            empty(folder)
            with pair.training(folder) as processes:
                if processes[dead].kill_after(share * pair.seconds):
                    other = processes[1 - dead].end()
                else:
                    share *= rng.random()
        assert other.code in (0, 69), other
        assert "Traceback" not in other.said, other.said
        if other.code:
            assert re.search(rf"error: .*process {dead}", other.said), other.said
        committed(folder)
        with pair.training(folder) as processes:
            again = [process.end() for process in processes]
        assert [ended.code for ended in again] == [0, 0], again
        check_equal(trained(folder), pair.expected)
        moment = {"after": round(share * pair.seconds, 4), "usual": round(pair.seconds, 4)}
        return moment | {"killed": dead, "signal": int(signal.SIGKILL), "other": other.code}

    suite.trial(
        *("one of several processes killed", "train", seed),
        *((*COMMANDS["train"].under_test, "ic_jax/multihost"), body),
    )
