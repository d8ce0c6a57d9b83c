"""Heartbeat thread: ends this process with a one-line error when another process dies.

Left to itself, JAX ends the other processes after a while with a stack trace. Here every process
writes a heartbeat to the key-value store every few seconds and reads which processes have failed,
so that all end sooner, with a message that names the failed one. Process 0 holds the store: its own
death shows in the connection to it (`coordinator_proxy`).
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Event, RLock, Thread

import jax

from ic_jax.multihost.kv_store import (
    REMEDY,
    ROOT,
    ProcessError,
    client,
    is_first,
    process_count,
    process_index,
    process_name,
)

INTERVAL = 2.0  # seconds between heartbeats
TIMEOUT = 40.0  # seconds without a heartbeat until a process counts as dead; JAX's own limit is 100
EXIT_TIMEOUT = 10.0  # seconds that processes that end with an error wait for each other

Beat = tuple[str, float]  # a process's last heartbeat, and when it was first seen


class Heartbeat(Thread):
    """Writes this process's heartbeat, and ends the process when another one has failed."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._stopped, self._failed, self._exiting = Event(), Event(), RLock()
        self._reason, self._first_failed, self._first = "", False, process_name(0)
        self._beats = dict.fromkeys(range(process_count()), ("", time.monotonic()))

    def run(self) -> None:
        """Write heartbeats until `stop`, or until a process fails."""
        count = 0
        while not self._stopped.wait(INTERVAL):
            count += 1
            try:
                client().key_value_set(f"{ROOT}/heartbeats/{process_index()}", str(count), True)
                if is_first():
                    self._announce_dead(client().key_value_dir_get(f"{ROOT}/heartbeats/"))
                failures = client().key_value_dir_get(f"{ROOT}/failures/")
            except jax.errors.JaxRuntimeError:
                failures = [("", f"process 0 does not answer{REMEDY}")]
            if failures and not self._stopped.is_set():
                self._reason = failures[0][1]
                self._failed.set()
                with self._exiting:  # unless the main thread is ending the process already
                    print(f"error: {self._reason}", file=sys.stderr, flush=True)
                    self.exit(ProcessError.exit_code)

    def first_disconnected(self) -> None:
        """End this process, since the key-value store died with process 0; unless `stop` came."""
        if self._stopped.is_set():
            return
        self._reason = f"{self._first} ended or cannot be reached{REMEDY}"
        self._first_failed = True
        self._failed.set()
        # The main thread may be ending the process, or wait for an answer that will not come.
        self._exiting.acquire(timeout=EXIT_TIMEOUT)
        print(f"error: {self._reason}", file=sys.stderr, flush=True)
        os._exit(ProcessError.exit_code)

    def _announce_dead(self, entries: Sequence[tuple[str, str]]) -> None:
        now = {int(key.rpartition("/")[2]): value for key, value in entries}
        self._beats, dead = update_beats(self._beats, now, time.monotonic())
        if dead:
            names = ", ".join(map(process_name, dead))
            self.announce(f"{names} gave no sign of life for {TIMEOUT:g} s{REMEDY}")

    def announce(self, reason: str) -> None:
        """Tell all processes why they must end; the first reason announced stands."""
        if self._first_failed:
            return
        with suppress(jax.errors.JaxRuntimeError):
            client().key_value_set(f"{ROOT}/failures/reason", reason)

    def wait_for_failure(self, timeout: float) -> str | None:
        """Return which process failed, or None after `timeout` seconds without a failure.

        From now on only the calling thread ends the process.
        """
        self._exiting.acquire()  # never released
        return self._reason if self._failed.wait(timeout) else None

    def stop(self) -> None:
        """Write no more heartbeats, and take no more notice of other processes."""
        self._stopped.set()
        self.join()

    def exit(self, code: int) -> None:
        """End this process at once, process 0 last: JAX aborts the others when process 0 ends."""
        self._exiting.acquire()
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(jax.errors.JaxRuntimeError):
            if not self._first_failed:
                client().wait_at_barrier(f"{ROOT}/exit", int(EXIT_TIMEOUT * 1000))
        if is_first():
            time.sleep(INTERVAL)
        os._exit(code)


def update_beats(
    before: Mapping[int, Beat], now: Mapping[int, str], at: float
) -> tuple[dict[int, Beat], list[int]]:
    """Return each process's last heartbeat with its time, and the processes that count as dead."""
    beats = {
        process: (now[process], at) if process in now and now[process] != beat else (beat, since)
        for process, (beat, since) in before.items()
    }
    return beats, [process for process, (_, since) in beats.items() if at - since > TIMEOUT]
