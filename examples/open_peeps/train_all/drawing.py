"""Training data that worker processes draw while others train, put on the device as it comes."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples.open_peeps.base_model.fit import Interrupted
from examples.open_peeps.base_model.word_tokenizer import Files, prompt_tokenizer
from examples.open_peeps.train_all.config import SmallModelConfig
from examples.open_peeps.train_all.rows import PERSON_IDS, DeviceRows, shapes
from examples.open_peeps.world import draw
from train.workers import follow_parent

WAITING = 64  # chunks that are read and not yet on the device, at most: a gigabyte


class Drawing:
    """Chunks that worker processes draw into a folder, in the background.

    A thread reads and tokenizes those that are finished. The thread that trains puts them on the
    device, by `collect` and `wait`.
    """

    def __init__(
        self,
        folder: Path,
        config: SmallModelConfig,
        tokenizers: dict[str, Files],
        workers: int,
        stop: Callable[[], bool],
        count: int = 0,
    ):
        """Begin to draw `count` chunks, or all of the configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        cell = 2 ** (len(config.vae_widths) - 1)
        jobs = draw.jobs(
            folder, count or config.chunks, config.seed, config.side, config.encoder_side, cell
        )
        self._tokenizer = prompt_tokenizer(tokenizers)
        self._text_length, self._folder, self._stop = config.text_length, folder, stop
        # Spawned: a fork of a process with JAX's threads may hang.
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)
        futures = [self._pool.submit(draw.draw_chunk, job) for job in jobs]
        self._ready: list[dict[str, np.ndarray] | Exception] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, args=(futures,), daemon=True).start()
        self.chunks = 0
        self.rows = DeviceRows(shapes(config), config.chunks * draw.PEOPLE)

    def collect(self) -> None:
        """Put the chunks that are finished on the device."""
        self._put(WAITING)

    def wait(self, count: int) -> None:
        """Put chunks on the device until there are `count`; none if there are as many.

        Raises:
            Interrupted: a stop is asked for while it waits.
        """
        if self.chunks >= count:
            return
        with tqdm(desc="drawing", unit="chunk", total=count, initial=self.chunks) as bar:
            while self.chunks < count:
                with self._changed:
                    self._changed.wait_for(lambda: bool(self._ready), timeout=1)
                if self._stop():
                    raise Interrupted("the drawing of the data")
                self._put(count - self.chunks)
                bar.update(self.chunks - bar.n)

    def close(self) -> None:
        """End the drawing; chunks that are not drawn stay undrawn."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _put(self, most: int) -> None:
        with self._changed:
            chunks, self._ready = self._ready[:most], self._ready[most:]
            self._changed.notify_all()
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            self.rows.append(chunk)
            self.chunks += 1

    def _read(self, futures: list[Future[int]]) -> None:
        """Read the chunks in the order in which they are finished."""
        for future in as_completed(futures):
            if future.cancelled():
                continue
            try:
                chunk: dict[str, np.ndarray] | Exception = self._arrays(future.result())
            except Exception as error:  # raised in the thread that trains
                chunk = error
            with self._changed:
                self._changed.wait_for(lambda: len(self._ready) < WAITING)
                self._ready.append(chunk)
                self._changed.notify_all()

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        chunk = draw.read_chunk(self._folder, number)
        ids: dict[str, np.ndarray] = {}
        for kind, lists in chunk.texts.items():
            flat = [text for texts in lists for text in texts]
            clip, t5 = self._tokenizer(flat, max_sequence_length=self._text_length)
            people = len(lists)
            if kind == "person":
                ids["person"] = clip[:, :PERSON_IDS]
            else:
                ids[f"clip/{kind}"] = clip.reshape(people, -1, clip.shape[1])
                ids[f"t5/{kind}"] = t5.reshape(people, -1, t5.shape[1])
        names = {name: name for name in draw.ARRAYS} | {"references": "crops"}
        arrays = {names[name]: getattr(chunk, name) for name in draw.ARRAYS}
        return arrays | {name: x.astype(np.int16) for name, x in ids.items()}


def _begin_worker() -> None:
    """End with the parent, and leave it the cores that it needs to compile."""
    follow_parent()
    os.nice(10)
