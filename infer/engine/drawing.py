"""Requests to the engine, and handles of the pictures that it draws."""

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, fields

from PIL import Image

from ic_jax.config import SamplingConfig
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.preprocessing.images import Fit
from ic_jax.preprocessing.tokenizers import check_prompt
from infer.engine.characters import Character

OnStep = Callable[[int, int, Image.Image | None], None]


class QueueFullError(RuntimeError):
    """Too many pictures are waiting; `retry_after` seconds later there should be room."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} pictures are waiting already; try again in {retry_after} s")
        self.retry_after = retry_after


class TimeLimitError(RuntimeError):
    """A picture was not done within the engine's time limit."""


class StoppedError(RuntimeError):
    """The engine stops, or has stopped."""


@dataclass(frozen=True)
class DrawingRequest:
    """One picture to draw; fields are the pipeline's arguments, None is the model's default.

    Attributes:
        subject: from `Engine.characters`.
        loras: names of loaded LoRAs, each with its weight; no other is active.
    """

    prompt: str = ""
    seed: int = 0
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    subject: Character | None = None
    subject_scale: float | None = None
    negative_subject_scale: float | None = None
    subject_fit: Fit = "pad"
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    max_sequence_length: int | None = None
    loras: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        """Take an empty second prompt as absent, as the pipeline does."""
        for name in ("prompt_2", "negative_prompt_2"):
            object.__setattr__(self, name, getattr(self, name) or None)

    @property
    def has_negative(self) -> bool:
        """Whether there is a negative prompt."""
        return self.negative_prompt is not None or self.negative_prompt_2 is not None

    def settings(self, defaults: SamplingConfig) -> SamplingArguments:
        """Check what can be checked without a model, and fill in its defaults.

        Raises:
            ValueError: an argument that cannot be used.
        """
        for text in (self.prompt, self.prompt_2, self.negative_prompt, self.negative_prompt_2):
            check_prompt(text or "")
        arguments.seeds(self.seed, prompts=1, images_each=1)
        for name, weight in self.loras:
            arguments.check_finite(f"the weight of LoRA {name!r}", weight)
        if self.subject is None:
            for name in ("subject_scale", "negative_subject_scale"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} does nothing without a subject")
        shared = {f.name for f in fields(self)} & {f.name for f in fields(SamplingArguments)}
        return arguments.sampling_arguments(
            defaults,
            has_negative=self.has_negative,
            num_images_per_prompt=1,
            sigmas=None,
            output_type="pil",
            **{name: getattr(self, name) for name in shared},
        )


class Drawing(Future[Image.Image]):
    """Handle of one picture: a Future, which `cancel` ends at any time, also while it is drawn.

    Attributes:
        request: what was asked for.
        settings: its sampling arguments, with the model's defaults filled in.
        step: number of steps that are done, of `steps`.
        batch: number of pictures that are drawn together with it, itself included; 0 before.
        submitted, started, deadline: times of `time.monotonic()`; `started` is None before.
        seconds: from `submitted` to the picture.
    """

    def __init__(
        self,
        request: DrawingRequest,
        settings: SamplingArguments,
        time_limit: float,
        on_step: OnStep | None = None,
        preview_every: int = 0,
    ):
        super().__init__()
        self.request, self.settings = request, settings
        self.on_step, self.preview_every = on_step, preview_every
        self.step, self.steps, self.batch = 0, settings.num_inference_steps, 0
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.seconds = 0.0
        self.deadline = self.submitted + time_limit

    @property
    def key(self) -> object:
        """What the pictures of one batch have in common."""
        request = self.request
        texts = (request.prompt_2, request.negative_prompt, request.negative_prompt_2)
        given = tuple(text is not None for text in texts)
        return self.settings, request.subject is not None, given, request.loras

    @property
    def shape(self) -> object:
        """What decides which programs draw it, apart from the size of the batch."""
        x, request = self.settings, self.request
        sizes = (x.height, x.width, x.num_inference_steps, x.max_sequence_length)
        loras = tuple(name for name, _ in request.loras)
        return *sizes, x.true_cfg_scale != 1, request.subject is not None, loras

    def wants_preview(self, step: int) -> bool:
        """Return whether an intermediate picture is wanted after a step, which is not the last."""
        return bool(self.preview_every) and step < self.steps and step % self.preview_every == 0

    def finish(self, image: Image.Image) -> None:
        """Hand over the picture, unless the drawing has ended meanwhile."""
        self.seconds = time.monotonic() - self.submitted
        with suppress(InvalidStateError):
            self.set_result(image)

    def fail(self, error: BaseException) -> None:
        """End without a picture, unless the drawing has ended meanwhile."""
        with suppress(InvalidStateError):
            self.set_exception(error)
