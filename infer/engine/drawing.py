"""Requests to the engine, and handles of the pictures that it draws."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image

from ic_jax import flow
from ic_jax.config import SamplingConfig
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.preprocessing.images import Fit
from ic_jax.preprocessing.originals import STRENGTH
from ic_jax.preprocessing.regions import NAMES, Region
from ic_jax.preprocessing.tokenizers import check_prompt
from ic_jax.subjects import SubjectPrompt
from infer.engine.characters import Character
from infer.engine.originals import Original

MAX_CHARACTERS = 4  # of a picture
OF_SUBJECTS = (
    *("subject_scale", "negative_subject_scale", "subject_fit"),
    *("subject_start", "subject_end", "subject_ramp", "subject_blocks"),
)
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


@dataclass(frozen=True, eq=False)
class PlacedCharacter:
    """One of several characters of a picture.

    Attributes:
        character: from `Engine.characters`.
        scale: strength; None is the request's `subject_scale`.
        region: name, box or mask that the character is confined to, as of `ic_jax.SubjectPrompt`;
            a mask is a picture in memory. None is the whole picture.
    """

    character: Character
    scale: float | None = None
    region: Region | None = None

    def __post_init__(self) -> None:
        """Refuse a scale below 0, and a region that names a file."""
        if self.scale is not None:
            arguments.check_finite("a character's scale", self.scale, 0)
        if isinstance(self.region, str | os.PathLike) and self.region not in NAMES:
            raise ValueError(f"region {self.region!r} is none of {', '.join(NAMES)}, and no box")

    @property
    def is_confined(self) -> bool:
        """Whether the character has a region that is less than the whole picture."""
        return self.prompt(None).is_confined

    def option(self, name: str) -> str:
        """Return the character as `infer --subject` takes it; a mask is not told.

        Args:
            name: of the file of its picture.
        """
        region = self.region if isinstance(self.region, str) else ""
        if isinstance(self.region, tuple):
            region = ",".join(map(_short, self.region))
        elif not region and set("@:") & set(name):
            region = "all"  # or a part of the name would be taken for one
        scale = "" if self.scale is None else f":{_short(self.scale)}"
        return f"{name}@{region}{scale}" if region else f"{name}{scale}"

    def prompt(self, features: Any) -> SubjectPrompt:
        """Return the pipeline's argument."""
        return SubjectPrompt(features, self.scale, self.region)


@dataclass(frozen=True, eq=False)
class DrawingRequest:
    """One picture to draw; fields are the pipeline's arguments, None is the model's default.

    Attributes:
        subject: from `Engine.characters`; the only one.
        subjects: several characters, in place of `subject`.
        original: picture to draw over, whose size is the default.
        strength: share of the steps that are taken from it on.
        loras: names of loaded LoRAs, each with its weight; no other is active.
    """

    prompt: str = ""
    seed: int = 0
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    subject: Character | None = None
    subjects: tuple[PlacedCharacter, ...] = ()
    subject_scale: float | None = None
    negative_subject_scale: float | None = None
    subject_fit: Fit = "pad"
    subject_start: float = 0.0
    subject_end: float = 1.0
    subject_ramp: float = 0.0
    subject_blocks: str = "all"
    original: Original | None = None
    strength: float | None = None
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
    def characters(self) -> list[Character]:
        """All characters of the picture."""
        single = [] if self.subject is None else [self.subject]
        return single + [placed.character for placed in self.subjects]

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
        self._check_subjects()
        shared = {f.name for f in fields(self)} & {f.name for f in fields(SamplingArguments)}
        values = {name: getattr(self, name) for name in shared}
        if self.original is not None:
            height, width = self.original.image.shape[:2]
            own = {"height": height, "width": width, "strength": STRENGTH}
            values |= {name: value for name, value in own.items() if values[name] is None}
        elif self.strength is not None:
            raise ValueError("strength does nothing without original, the picture to draw over")
        return arguments.sampling_arguments(
            defaults,
            has_negative=self.has_negative,
            num_images_per_prompt=1,
            sigmas=None,
            output_type="pil",
            **values,
        )

    def _check_subjects(self) -> None:
        if self.subject is not None and self.subjects:
            raise ValueError("subject and subjects exclude each other; give one")
        if len(self.subjects) > MAX_CHARACTERS:
            raise ValueError(f"{len(self.subjects)} characters; at most {MAX_CHARACTERS} are drawn")
        if not self.characters:
            for f in fields(self):
                changed = getattr(self, f.name) != f.default
                if changed and f.name in OF_SUBJECTS:
                    raise ValueError(f"{f.name} does nothing without a subject")


class Drawing(Future[Image.Image]):
    """Handle of one picture: a Future, which `cancel` ends at any time, also while it is drawn.

    Attributes:
        request: what was asked for.
        settings: its sampling arguments, with the model's defaults filled in.
        step: number of steps that are done, of `steps`, which `strength` makes fewer.
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
        self.step, self.steps, self.batch = 0, _steps(settings), 0
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
        return self.settings, self._subjects, self._originals, given, request.loras

    @property
    def _subjects(self) -> object:
        """What the characters of one batch have in common."""
        placed = self.request.subjects
        number, confined = len(placed), any(x.is_confined for x in placed)
        return self.request.subject is not None, number, confined

    @property
    def _originals(self) -> object:
        """What the pictures to draw over have in common in one batch."""
        original = self.request.original
        return original is not None, original is not None and original.mask_image is not None

    @property
    def shape(self) -> object:
        """What decides which programs draw it, apart from the size of the batch."""
        x, request = self.settings, self.request
        sizes = (x.height, x.width, self.steps, x.max_sequence_length)
        loras = tuple(name for name, _ in request.loras)
        return *sizes, x.true_cfg_scale != 1, self._subjects, self._originals, loras

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


def _short(number: float) -> str:
    """Return the shortest text of a number."""
    return str(number).removesuffix(".0")


def _steps(settings: SamplingArguments) -> int:
    """Return the number of steps that are taken."""
    steps, strength = settings.num_inference_steps, settings.strength
    return steps if strength is None else steps - flow.first_step(steps, strength)
