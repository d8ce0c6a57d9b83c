"""Reading of files in threads: each once, compared with its checksum while its tensors are used."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Condition, Event

# A thread looks this often whether it should end. Shorter chunks make it wait for the interpreter's
# lock more often, which a thread that traces a program holds.
CHUNK = 1 << 24

Use = tuple[int, Callable[[], None]]


@dataclass(frozen=True)
class FileToRead:
    """File, and what is done with its tensors.

    Attributes:
        sha256: checksum to compare with, in hexadecimal; None compares nothing.
        uses: of each tensor, the end of its bytes in the file and the work that reads them, in
            the order of the file. The work finds the bytes in the page cache.
    """

    path: Path
    size: int
    sha256: str | None
    uses: Sequence[Use] = ()


class ByteBudget:
    """Bytes that threads may hold together; who needs more than all waits to be alone."""

    def __init__(self, size: int):
        self._size = self._free = size
        self._changed = Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Hold `count` bytes in the `with` block, waiting until they are free."""
        count = min(count, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()


def read_files(files: Iterable[FileToRead], budget: ByteBudget) -> list[Path]:
    """Read files in threads, the largest first; return those that differ from their checksum.

    The threads together hold as many bytes as `budget` has, from when a tensor is read to be hashed
    until it was used: it is still in the page cache then, and read from the disk once.

    The first exception, of a thread or Ctrl-C, is raised at once; the other threads end at their
    next chunk or tensor.
    """
    largest_first = sorted(files, key=lambda file: -file.size)
    stop, pool = Event(), ThreadPoolExecutor(thread_name_prefix="read_files")
    try:
        tasks = {pool.submit(_read, file, budget, stop): file.path for file in largest_first}
        differ = {tasks[task] for task in as_completed(tasks) if not task.result()}
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return [file.path for file in largest_first if file.path in differ]


def _read(file: FileToRead, budget: ByteBudget, stop: Event) -> bool:
    """Return whether the file has its checksum."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK, file.size) if file.sha256 else 0))
    with FileIO(file.path) as stream:
        start = 0
        for end, use in (*file.uses, (file.size, None)):
            with budget.taken(end - start if use else 0):
                for chunk in _chunks(stream, end, buffer) if file.sha256 else ():
                    if stop.is_set():
                        break
                    digest.update(chunk)
                if stop.is_set():
                    return True
                if use is not None:
                    use()
            start = end
    return digest.hexdigest() == (file.sha256 or digest.hexdigest())


def _chunks(stream: FileIO, end: int, buffer: memoryview) -> Iterator[memoryview]:
    """Yield the bytes of a file from its position to `end`, each chunk in the same buffer."""
    while (left := end - stream.tell()) > 0:
        count = stream.readinto(buffer[:left])
        if not count:  # the file became shorter; the checksum will tell
            return
        yield buffer[:count]
