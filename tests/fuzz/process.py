"""A reader's fuzzing in a process of its own, whose end is a finding too."""

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.readers import READERS
from tests.fuzz.rounds import LAST, Tally, fuzz

PATIENCE = 900  # seconds for a round, after which the process is ended


def fuzz_in_process(name: str, seconds: float, first: int) -> tuple[Tally, int]:
    """Fuzz a reader for seconds of processor time; return what came out, and the seconds.

    Args:
        first: seed of the first round.
    """
    context = multiprocessing.get_context("spawn")
    tally, used = Tally(), 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(name, Path(scratch), seconds, first, theirs))
        process.start()
        theirs.close()
        try:
            while ours.poll(PATIENCE):
                tally, used = ours.recv()
            process.terminate()
        except EOFError:  # it is done, or has died
            pass
        process.join()
        if process.exitcode:
            place = f"process: ended with {process.exitcode}"
            tally.findings[place] = place
            if (last := Path(scratch) / LAST).exists():  # not if the valid files could not be read
                case, _, data = last.read_bytes().partition(b"\n")
                tally.cases[place] = case.decode(), data
    return tally, used


def _work(name: str, scratch: Path, seconds: float, first: int, sent: Any) -> None:
    reader, folder = READERS[name], scratch / "files"
    folder.mkdir()
    reader.write(folder)

    def send(tally: Tally) -> None:
        sent.send((tally, round(time.process_time())))

    fuzz(reader, folder, Tally(), first=first, seconds=seconds, done=send)
