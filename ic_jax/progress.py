"""Progress bar of a pipeline's calls, which leaves the compiled program as it is.

One program runs all steps and tells nothing meanwhile. What the last call of the same shapes took
says how far this one is; a first call has no such figure, and shows that it compiles and how long.
"""

import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from ic_jax import multihost

COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event when a program is compiled
COMPILING = "compiling"
TICK = 0.1  # seconds between two looks at the clock
AfterStep = Callable[[int, float, dict[str, Array]], Mapping[str, Any] | None]

_automatic = True
_timed = threading.local()  # .by: the `_Timed` whose program this thread compiles


@dataclass(frozen=True)
class BarConfig:
    """Settings of a pipeline's bar.

    Attributes:
        disable: None shows it in a notebook and on a terminal.
        desc: text before the bar.
        leave: whether the finished bar stays.
    """

    disable: bool | None = None
    desc: str | None = None
    leave: bool = True

    @property
    def is_shown(self) -> bool:
        """Whether a call shows its bar now; of several processes the first alone may."""
        automatic = _automatic and (_in_notebook() or (sys.stderr and sys.stderr.isatty()))
        is_wanted = automatic if self.disable is None else not self.disable
        return multihost.is_first() and bool(is_wanted)


class Progress:
    """Bars of a pipeline's calls, and what a step of each shape took."""

    def __init__(self) -> None:
        self.config = BarConfig()
        self._seconds: dict[Hashable, float] = {}  # of the last call, by the shapes of its inputs

    def count(self, steps: int, denoise: Callable[[AfterStep], Any], after_step: AfterStep) -> Any:
        """Return `denoise(after_step)`, which calls `after_step` when a step is done."""
        if not self.config.is_shown:
            return denoise(after_step)
        with self._bar(steps) as bar:
            bar.set_postfix_str(COMPILING)

            def counting(i: int, timestep: float, values: dict[str, Array]) -> Any:
                jax.block_until_ready(values["latents"])  # or the bar would count queued steps
                bar.set_postfix_str("", refresh=False)
                bar.update()
                return after_step(i, timestep, values)

            return denoise(counting)

    def time(self, steps: int, denoise: Callable[[], Any], inputs: Any) -> Any:
        """Return `denoise()`, a single program whose time depends on the shapes of `inputs`."""
        if not self.config.is_shown:
            return denoise()
        shapes = _shapes(inputs)
        with self._bar(steps) as bar, _Timed(bar, self._seconds.get(shapes)) as timed:
            result = jax.block_until_ready(denoise())
            self._seconds[shapes] = timed.seconds
        return result

    @contextmanager
    def _bar(self, steps: int) -> Iterator[tqdm]:
        options = {"desc": self.config.desc, "leave": self.config.leave}
        with tqdm(total=steps, unit="step", file=sys.stderr, mininterval=0, **options) as bar:
            yield bar


class _Timed:
    """Context that moves a bar by the clock; without an expected time it stands until the end."""

    def __init__(self, bar: tqdm, expected: float | None) -> None:
        _listen()
        self._bar, self._expected = bar, expected
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._start = time.perf_counter()
        if expected is None:
            bar.set_postfix_str(COMPILING)

    @property
    def seconds(self) -> float:
        """Seconds since the program was compiled."""
        return time.perf_counter() - self._start

    def compiled(self) -> None:
        """Begin to count: until now a program was compiled, or read from a cache."""
        self._start = time.perf_counter()
        self._bar.set_postfix_str("", refresh=False)
        self._bar.reset()

    def _tick(self) -> None:
        while not self._ended.wait(TICK):
            if self._expected is not None:
                share = self.seconds / self._expected
                self._bar.n = min(int(share * self._bar.total), self._bar.total - 1)
            self._bar.refresh()

    def __enter__(self) -> "_Timed":
        _timed.by = self
        self._thread.start()
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        _timed.by = None
        self._ended.set()
        self._thread.join()
        if error is None:
            self._bar.set_postfix_str("", refresh=False)
            self._bar.update(self._bar.total - self._bar.n)


def only_when_asked() -> None:
    """Show no bar by default: the program has an output of its own."""
    global _automatic
    _automatic = False


@cache
def _listen() -> None:
    """Have JAX tell once for all when it has compiled a program."""

    def listen(event: str, *_: Any, **__: Any) -> None:
        timed = getattr(_timed, "by", None)
        if event == COMPILED and timed is not None:
            timed.compiled()

    jax.monitoring.register_event_duration_secs_listener(listen)


def _shapes(inputs: Any) -> Hashable:
    """Return what tells one compiled program from another: structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(inputs)
    return structure, tuple((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")
