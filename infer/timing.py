"""Stopwatch that reports compilation separately."""

import threading
import time

import jax

# Tracing, lowering and compiling a program, or reading it from the compilation cache.
_COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Stopwatch:
    """Lap times in seconds; compilation by JAX in the same thread is counted separately."""

    def __init__(self) -> None:
        self._compiling, self._thread = 0.0, threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self._start = time.perf_counter()

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in _COMPILE_EVENTS and threading.get_ident() == self._thread:
            self._compiling += duration_secs

    def lap(self) -> str:
        """Return the time since the last lap, such as "1.5 s and 12.0 s compiling"."""
        now = time.perf_counter()
        rest = max(now - self._start - self._compiling, 0.0)
        text = f"{rest:.1f} s"
        if self._compiling >= 0.05:
            text += f" and {self._compiling:.1f} s compiling"
        self._start, self._compiling = now, 0.0
        return text
