"""Disks that are full from the start, that another fills meanwhile, and read-only ones."""

import os

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.disks import can_mount, mounted
from tests.faults.suite import check_told

pytestmark = pytest.mark.faults
TRIALS = 5
AMPLE = 256 * 1024**2  # bytes


def size_of(folder):
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_full(suite, name, folder, ended):
    check_told(ended, 74)
    error = next(line for line in ended.said.splitlines() if line.startswith("error: "))
    assert str(folder) in error, error
    suite.check_whole(name, folder)


@pytest.mark.parametrize("seed", range(TRIALS))
@pytest.mark.parametrize("name", COMMANDS)
def test_small_from_the_start(suite, name, seed):
    """A tmpfs of a random share of what is needed; a limit of a file's size without root."""

    def body(rng, folder):
        need = size_of(suite.original(name))
        size = int(need * rng.uniform(0.02, 0.9))
        if not can_mount():
            largest = max(p.stat().st_size for p in suite.original(name).rglob("*") if p.is_file())
            limit = int(largest * rng.uniform(0.02, 0.9))
            with suite.start(name, folder, file_limit=limit) as process:
                check_full(suite, name, folder, process.end())
            suite.finish(name, folder)
            return {"disk": f"{limit} bytes a file"}
        with mounted(folder, size) as disk:
            with suite.start(name, folder) as process:
                check_full(suite, name, folder, process.end())
            disk.resize(AMPLE)
            suite.finish(name, folder)
        return {"disk": f"tmpfs of {size} bytes, {need} needed"}

    suite.trial("disk too small", name, seed, COMMANDS[name].under_test, body)


@pytest.mark.skipif(not can_mount(), reason="needs root, to mount a tmpfs")
@pytest.mark.parametrize("seed", range(TRIALS))
@pytest.mark.parametrize("name", COMMANDS)
def test_filled_by_another_program(suite, name, seed):
    def body(rng, folder):
        suite.expected(name)
        with mounted(folder, AMPLE) as disk:

            def fill(process, seconds):
                disk.make_room()
                process.process.join(seconds)
                disk.fill()
                process.process.join()
                return process.process.exitcode != 0

            told, ended = suite.disturb(name, seed, rng, folder, fill)
            check_full(suite, name, folder, ended)
            disk.make_room()
            suite.finish(name, folder)
        return told | {"disk": "tmpfs"}

    suite.trial("disk filled at a random moment", name, seed, COMMANDS[name].under_test, body)


@pytest.mark.parametrize("name", COMMANDS)
def test_read_only(suite, name):
    def body(rng, folder):
        if can_mount():
            with mounted(folder, AMPLE) as disk:
                disk.lock(read_only=True)
                with suite.start(name, folder) as process:
                    check_told(process.end(), 2, 74)
                disk.lock(read_only=False)
                suite.finish(name, folder)
            return {"disk": "tmpfs mounted read-only"}
        os.chmod(folder, 0o555)
        try:
            with suite.start(name, folder) as process:
                check_told(process.end(), 2, 74)
        finally:
            os.chmod(folder, 0o755)
        suite.finish(name, folder)
        return {"disk": "folder of mode 0555"}

    suite.trial("read-only folder", name, 0, COMMANDS[name].under_test, body)
