"""What a run says while it works: lines between the bars, and one before each long silence."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ic_jax import multihost
from ic_jax.cli import say
from ic_jax.files import write_json
from ic_jax.untrusted_files import read_json

SHORT = 2.0  # seconds that need no announcement
LONG = 1e9  # seconds that nothing took


class Speaker:
    """Speaker of a run; of several processes the first speaks.

    RUN/seconds.json holds what each silence took last, also in an earlier start of the run.
    """

    def __init__(self, run: Path):
        self._file = run / "seconds.json"
        try:
            known = read_json(self._file)
        except (OSError, ValueError):
            known = {}
        known = known if isinstance(known, dict) else {}
        numbers = {k: x for k, x in known.items() if type(x) in (int, float)}
        self._seconds = {k: float(x) for k, x in numbers.items() if 0 <= x < LONG}

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if multihost.is_first():
            with tqdm.external_write_mode():
                say(text)

    @contextmanager
    def silence(self, what: str, *, step: int | None = None) -> Iterator[None]:
        """Say what will take long, and how long it took last time; measure it.

        It is not said again where it was short.

        Args:
            what: its name, the same every time.
            step: after which it is done, if it is done many times.
        """
        last = self._seconds.get(what)
        if last is None or last >= SHORT:
            when = "" if step is None else f" after step {step}"
            took = "" if last is None else f" ({duration(last)} last time)"
            self.say(f"{what}{when}{took} ...")
        start = time.perf_counter()
        yield
        self._seconds[what] = round(time.perf_counter() - start, 2)
        if multihost.is_first():
            write_json(self._file, self._seconds)


def duration(seconds: float) -> str:
    """Return a duration in words: 3.2 s, 4:05, 1:04:05."""
    return f"{seconds:.1f} s" if seconds < 60 else tqdm.format_interval(seconds).lstrip("0")
