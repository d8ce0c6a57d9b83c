"""Every host's watch over the others: it ends this process, with a word, when one is gone.

When a host dies JAX ends the others after a while with a stack trace. Here every host tells host 0
every few seconds that it lives and asks it who does not, so that they end sooner, by name. Host 0
keeps the store: that it ended itself shows in the connection to it (`coordinator_proxy`).
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
    HostsError,
    client,
    is_first,
    process_count,
    process_index,
    process_name,
)

PULSE = 2.0  # seconds between signs of life
SILENCE = 40.0  # without one for so long a host is gone; JAX's own limit is 100
FAREWELL = 10.0  # seconds that those who end with an error wait for each other

Pulse = tuple[str, float]  # what a host counted, and when that was first seen


class Heartbeat(Thread):
    """Tells host 0 that this host lives, and ends the process when another one is gone."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="hosts")
        self._stopped, self._known, self._ending = Event(), Event(), RLock()
        self._reason, self._orphaned, self._first = "", False, process_name(0)
        self._pulses = dict.fromkeys(range(process_count()), ("", time.monotonic()))

    def run(self) -> None:
        beat = 0
        while not self._stopped.wait(PULSE):
            beat += 1
            try:
                client().key_value_set(f"{ROOT}/pulses/{process_index()}", str(beat), True)
                if is_first():
                    self._judge(client().key_value_dir_get(f"{ROOT}/pulses/"))
                found = client().key_value_dir_get(f"{ROOT}/lost/")
            except jax.errors.JaxRuntimeError:
                found = [("", f"host 0 does not answer{REMEDY}")]
            if found and not self._stopped.is_set():
                self._reason = found[0][1]
                self._known.set()
                with self._ending:  # unless the main thread is about it already
                    print(f"error: {self._reason}", file=sys.stderr, flush=True)
                    self.leave(HostsError.exit_code)

    def first_is_gone(self) -> None:
        """End the process, since what the hosts tell each other is gone with host 0; unless all
        have agreed to end."""
        if self._stopped.is_set():
            return
        self._reason = f"{self._first} ended or cannot be reached{REMEDY}"
        self._orphaned = True
        self._known.set()
        # The main thread may be about to end, or wait for an answer that will not come.
        self._ending.acquire(timeout=FAREWELL)
        print(f"error: {self._reason}", file=sys.stderr, flush=True)
        os._exit(HostsError.exit_code)

    def _judge(self, found: Sequence[tuple[str, str]]) -> None:
        pulses = {int(key.rpartition("/")[2]): value for key, value in found}
        self._pulses, gone = judged(self._pulses, pulses, time.monotonic())
        if gone:
            names = ", ".join(map(process_name, gone))
            self.tell(f"{names} gave no sign of life for {SILENCE:g} s{REMEDY}")

    def tell(self, reason: str) -> None:
        """Let all hosts know; the first reason stands."""
        if self._orphaned:
            return
        with suppress(jax.errors.JaxRuntimeError):
            client().key_value_set(f"{ROOT}/lost/reason", reason)

    def verdict(self, timeout: float) -> str | None:
        self._ending.acquire()  # for good
        return self._reason if self._known.wait(timeout) else None

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def leave(self, code: int) -> None:
        """End this process at once, but host 0 last: without it JAX aborts the others."""
        self._ending.acquire()
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(jax.errors.JaxRuntimeError):
            if not self._orphaned:
                client().wait_at_barrier(f"{ROOT}/leave", int(FAREWELL * 1000))
        if is_first():
            time.sleep(PULSE)
        os._exit(code)


def judged(
    before: Mapping[int, Pulse], now: Mapping[int, str], at: float
) -> tuple[dict[int, Pulse], list[int]]:
    """Each host's last pulse and when it was first seen, and the hosts that are silent too long."""
    pulses = {
        host: (now[host], at) if host in now and now[host] != value else (value, since)
        for host, (value, since) in before.items()
    }
    return pulses, [host for host, (_, since) in pulses.items() if at - since > SILENCE]
