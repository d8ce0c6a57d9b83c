"""Process pool: a parallel map whose workers end with their parent."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import parent_process
from threading import Thread
from typing import Any


def parallel_map(
    function: Callable[..., Any], *sequences: Sequence, workers: int | None = None, chunk: int = 64
) -> Iterator[Any]:
    """Yield `map(function, *sequences)` in order, computed by a pool of processes.

    Args:
        function: picklable, as its arguments and results.
        workers: number of processes; by default one for each core. A single chunk is computed
            in this process.
        chunk: calls that a worker takes at a time.
    """
    count = min(workers or os.cpu_count() or 1, -(-len(sequences[0]) // chunk))
    if count <= 1:
        yield from map(function, *sequences)
        return
    # Spawned: a fork of a process with JAX's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, follow_parent)
    try:
        yield from pool.map(function, *sequences, chunksize=chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """Leave Ctrl-C to the parent process, and end when the parent ends.

    This is the initializer of a pool: a killed parent cannot stop its workers, which would wait
    for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
