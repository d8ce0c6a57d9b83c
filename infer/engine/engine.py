"""The engine: a bounded queue of drawings, and the thread that draws them in batches."""

import math
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

import jax

from ic_jax import InstantCharacterPipeline, flow
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.preprocessing.regions import region_weights
from infer.engine import batch
from infer.engine.characters import Character, Characters
from infer.engine.drawing import (
    Drawing,
    DrawingRequest,
    OnStep,
    QueueFullError,
    StoppedError,
    TimeLimitError,
)
from infer.engine.originals import check_pixels

MAX_BATCH = 4
MAX_STEPS = 100
# Each adds compiled programs, which JAX keeps; beyond this many, all go.
MAX_SHAPES = 32


class Engine:
    """Queue and drawing thread of a pipeline, which nobody else may use meanwhile.

    Attributes:
        pipe: the pipeline.
        characters: pictures of characters that requests may name.
        loras: names of the pipeline's LoRAs, which requests may name.
    """

    def __init__(
        self,
        pipe: InstantCharacterPipeline,
        *,
        max_batch: int = MAX_BATCH,
        max_waiting: int = 64,
        time_limit: float = 600.0,
        max_characters: int = 16,
    ):
        """Prepare an engine; `start` starts its threads.

        Args:
            pipe: a pipeline of this process alone, with the LoRAs that requests may name.
            max_batch: most pictures drawn at once; rounded down to a power of two, times the
                shards of the batch on the pipeline's mesh.
            max_waiting: most pictures that wait, beside those that are drawn.
            time_limit: seconds from `submit` to the picture.
            max_characters: kept for requests that name them by hash.
        """
        mesh = pipe.mesh
        shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        powers = range(max(1, max_batch // shards).bit_length())
        self.sizes = [shards * 2**power for power in powers]
        self.pipe, self.max_waiting, self.time_limit = pipe, max_waiting, time_limit
        self.characters = Characters(max_characters)
        self.loras = {name for names in pipe.get_list_adapters().values() for name in names}
        self._active: tuple[tuple[str, float], ...] | None = None  # LoRAs of the last batch
        self._shapes: set[object] = set()
        self._waiting: deque[Drawing] = deque()
        self._current: list[Drawing] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_batch = 1.0
        self._threads = [
            threading.Thread(target=work, name=f"engine-{work.__name__.strip('_')}", daemon=True)
            for work in (self._draw_all, self._expire_all)
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start to draw what is submitted."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Refuse new requests, end waiting ones with StoppedError, finish those being drawn."""
        self.refuse()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def refuse(self) -> None:
        """Begin to stop, without waiting for what is drawn; any thread may call it."""
        with self._changed:
            self._stopping = True
            waiting, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        for drawing in waiting:
            drawing.fail(StoppedError("the engine stops; nothing new is drawn"))

    def warm_up(self, say: Callable[[str], object] = lambda _: None) -> None:
        """Draw a first picture of the model's default size in each batch size, before `start`.

        Args:
            say: takes a line for each size.
        """
        subject = Character.blank() if self.pipe.adapter is not None else None
        for size in self.sizes:
            begin = time.monotonic()
            plain, shown = DrawingRequest(), DrawingRequest(subject=subject)
            for request in [plain] if subject is None else [shown, plain]:
                drawing = Drawing(request, self.check(request), math.inf)
                self._draw([drawing] * size)
                drawing.result(timeout=0)  # or its error
            say(f"batches of {size} are compiled: {time.monotonic() - begin:.1f} s")

    def submit(
        self, request: DrawingRequest, *, on_step: OnStep | None = None, preview_every: int = 0
    ) -> Drawing:
        """Queue a picture.

        Args:
            request: what to draw.
            on_step: called in the drawing thread after every step, with the number of steps done,
                the number of all, and the model's present estimate of the picture or None.
            preview_every: number of steps from estimate to estimate; each decodes the batch once
                more. 0 makes none.

        Raises:
            ValueError: an argument that cannot be used.
            QueueFullError: too many pictures are waiting.
            StoppedError: the engine stops.
        """
        settings = self.check(request)
        drawing = Drawing(request, settings, self.time_limit, on_step, preview_every)
        self._queue([drawing])
        return drawing

    def submit_all(self, requests: Sequence[DrawingRequest]) -> list[Drawing]:
        """Queue several pictures, or none of them if `submit` would refuse one."""
        drawings = [Drawing(request, self.check(request), self.time_limit) for request in requests]
        self._queue(drawings)
        return drawings

    def check(self, request: DrawingRequest) -> SamplingArguments:
        """Return the sampling arguments of a request; ValueError if it cannot be drawn."""
        settings = request.settings(self.pipe.sampling)
        multiple = self.pipe.vae.config.downscale * flow.PATCH
        settings.check_size(multiple)
        if settings.num_inference_steps > MAX_STEPS:
            steps = settings.num_inference_steps
            raise ValueError(f"num_inference_steps is {steps}; it must be at most {MAX_STEPS}")
        check_pixels(settings.height, settings.width)
        guided = self.pipe.transformer.config.guidance_embeds
        if request.guidance_scale is not None and not guided:
            raise ValueError("guidance_scale does nothing: this model has no guidance embedding")
        grid = settings.height // multiple, settings.width // multiple
        for region in (placed.region for placed in request.subjects):
            if region is not None:
                region_weights(region, grid)
        if request.characters and self.pipe.adapter is None:
            raise ValueError("this model has no adapter and draws no characters")
        for name, _ in request.loras:
            if name not in self.loras:
                known = ", ".join(sorted(self.loras)) or "none"
                raise ValueError(f"there is no LoRA {name!r}; known are {known}")
        return settings

    @property
    def stopping(self) -> bool:
        """Whether the engine takes no requests any more."""
        return self._stopping

    @property
    def waiting(self) -> int:
        """Number of pictures that wait."""
        with self._changed:
            return sum(not drawing.done() for drawing in self._waiting)

    @property
    def drawing(self) -> int:
        """Number of pictures that are drawn now."""
        return sum(not drawing.done() for drawing in self._current)

    def _queue(self, drawings: list[Drawing]) -> None:
        with self._changed:
            if self._stopping:
                raise StoppedError("the engine stops; nothing new is drawn")
            self._waiting = deque(drawing for drawing in self._waiting if not drawing.done())
            if (waiting := len(self._waiting)) + len(drawings) > self.max_waiting:
                batches = math.ceil(waiting / self.sizes[-1]) + 1
                raise QueueFullError(waiting, math.ceil(batches * self._seconds_per_batch))
            self._waiting += drawings
            self._changed.notify_all()

    def _draw_all(self) -> None:
        """Draw until the engine stops; the work of the drawing thread."""
        with _hushed():
            while drawings := self._next_batch():
                begin = time.monotonic()
                with suppress(batch.Abandoned):
                    self._draw(drawings)
                seconds = time.monotonic() - begin
                with self._changed:
                    self._current = []
                    self._seconds_per_batch += 0.3 * (seconds - self._seconds_per_batch)
                    self._changed.notify_all()

    def _next_batch(self) -> list[Drawing]:
        """Wait for drawings; return the first with others of its key; [] when the engine stops."""
        with self._changed:
            while True:
                if self._stopping:
                    return []
                waiting = [drawing for drawing in self._waiting if not drawing.done()]
                if waiting:
                    break
                self._waiting.clear()
                self._changed.wait()
            alike = [drawing for drawing in waiting if drawing.key == waiting[0].key]
            self._current = alike[: self.sizes[-1]]
            self._waiting = deque(x for x in waiting if x not in self._current)
        for drawing in self._current:
            drawing.started, drawing.batch = time.monotonic(), len(self._current)
        return self._current

    def _draw(self, drawings: list[Drawing]) -> None:
        """Draw one batch; where it fails, each alone, so that one cannot fail its neighbours."""
        size = next(size for size in self.sizes if size >= len(drawings))
        try:
            self._forget_shapes((drawings[0].shape, size))
            self._activate(drawings[0].request.loras)
            images = batch.draw(self.pipe, drawings, size)
        except batch.Abandoned:
            raise
        except Exception as error:
            if len(drawings) > 1:
                for drawing in drawings:
                    with suppress(batch.Abandoned):
                        self._draw([drawing])
                return
            if not isinstance(error, ValueError | FloatingPointError):
                traceback.print_exc()
            drawings[0].fail(error)
            return
        for drawing, image in zip(drawings, images, strict=True):
            drawing.finish(image)

    def _activate(self, loras: tuple[tuple[str, float], ...]) -> None:
        if loras != self._active:
            self._active = None  # unknown, if this fails
            weights = dict(loras)
            self.pipe.set_adapters(list(weights), list(weights.values()))
            self._active = loras

    def _forget_shapes(self, shape: object) -> None:
        self._shapes.add(shape)
        if len(self._shapes) > MAX_SHAPES:
            jax.clear_caches()
            self._shapes = {shape}

    def _expire_all(self) -> None:
        """End what is overdue, until the engine has stopped; the work of a second thread."""
        while True:
            with self._changed:
                now = time.monotonic()
                drawings = [x for x in (*self._waiting, *self._current) if not x.done()]
                overdue = [drawing for drawing in drawings if drawing.deadline <= now]
                if not overdue:
                    if self._stopping and not drawings:
                        return
                    self._changed.wait(min((x.deadline - now for x in drawings), default=None))
            for drawing in overdue:
                message = f"the picture was not done within {self.time_limit:g} s"
                drawing.fail(TimeLimitError(message))


@contextmanager
def _hushed() -> Iterator[None]:
    """Let no warning of this thread be shown: those of drawing quote prompts."""
    show, here = warnings.showwarning, threading.current_thread()

    def show_others(*args: Any, **options: Any) -> None:
        if threading.current_thread() is not here:
            show(*args, **options)

    warnings.showwarning = show_others
    try:
        yield
    finally:
        warnings.showwarning = show
