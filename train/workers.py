"""How a worker process ends: when its parent says so, or is no more."""

import os
import signal
from multiprocessing import parent_process
from threading import Thread


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
