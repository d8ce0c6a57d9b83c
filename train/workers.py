"""Processes that work on many things side by side, and how they end."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import parent_process
from threading import Thread
from typing import Any


def mapped(
    one: Callable[..., Any], *over: Sequence, workers: int | None = None, chunk: int = 64
) -> Iterator[Any]:
    """`map(one, *over)`, in order, by processes that each take `chunk` calls at a time.

    Args:
        one: can be pickled, as its arguments and results can.
        workers: processes; by default one for each core. What is no more than one chunk is
            done here, without any.
    """
    count = min(workers or os.cpu_count() or 1, -(-len(over[0]) // chunk))
    if count <= 1:
        yield from map(one, *over)
        return
    # Spawned, because a fork of a process that holds JAX's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, follow_parent)
    try:
        yield from pool.map(one, *over, chunksize=chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """Initializer of a pool: Ctrl-C is the parent's to handle, and no worker outlives it.

    A killed parent cannot stop its workers, and they would wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
