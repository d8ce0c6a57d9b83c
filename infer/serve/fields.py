"""Fields of a request for pictures: OpenAI's, and the pipeline's arguments beside them."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ic_jax.from_dict import ConfigError, dataclass_from_dict, nearest
from ic_jax.preprocessing.arguments import check_choice, check_count
from ic_jax.preprocessing.regions import Region
from ic_jax.untrusted_files import parse_json
from infer.engine import Character, DrawingRequest, Original, PlacedCharacter
from infer.serve.errors import ApiError

MAX_PICTURES = 10  # of one request, as OpenAI
MAX_PROMPT = 32_000  # characters, likewise
# OpenAI's fields that change nothing here, with the values that ask for nothing else.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "background": ("auto", "opaque"),
    "input_fidelity": ("high",),
    "moderation": ("auto",),
    "output_compression": (),
    "partial_images": (0,),
    "quality": ("auto", "standard"),
    "stream": (False,),
    "style": (),
}


@dataclass(frozen=True)
class Fields:
    """A request for pictures; what is None takes the model's default.

    Attributes:
        size: WIDTHxHEIGHT in pixels.
        response_format: "b64_json", or "url" for a data: URL with the same bytes.
        seed: of the first picture, the others count up from it; random by default.
        subject: SHA-256 of a character's picture that was sent before, or a list of several.
        regions: of each character, a name, or a box "left,top,right,bottom" from 0 to 1.
        subject_scale: a number, or a list with one for each character.
        strength: share of the steps that are taken from the picture to draw over on.
        loras: weights of LoRAs by name.
    """

    prompt: str
    model: str | None = None
    n: int = 1
    size: str = "auto"
    response_format: str = "b64_json"
    output_format: str = "png"
    user: str | None = None
    seed: int | None = None
    subject: Any = None
    regions: tuple[str, ...] = ()
    subject_scale: Any = None
    negative_subject_scale: float | None = None
    subject_fit: str = "pad"
    subject_start: float = 0.0
    subject_end: float = 1.0
    subject_ramp: float = 0.0
    subject_blocks: str = "all"
    strength: float | None = None
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    max_sequence_length: int | None = None
    loras: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the engine does not; ConfigError names the field."""
        for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
            if len(getattr(self, name) or "") > MAX_PROMPT:
                raise ConfigError(f"{name} is longer than {MAX_PROMPT} characters")
        if not all(isinstance(name, str) for name in self.hashes):
            raise ConfigError("subject must be a text, or a list of texts")
        if not isinstance(self.loras, Mapping):
            raise ConfigError('loras must be an object of weights by name, such as {"ink": 0.8}')
        try:
            check_count("n", self.n, MAX_PICTURES)
            check_choice("response_format", self.response_format, ("b64_json", "url"))
            check_choice("output_format", self.output_format, ("png", "jpeg", "webp"))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def hashes(self) -> list[Any]:
        """The characters that are named."""
        if self.subject is None:
            return []
        return list(self.subject) if isinstance(self.subject, list) else [self.subject]

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """Height and width in pixels; None is the model's own, or that of what is drawn over."""
        if self.size == "auto":
            return None, None
        if not (match := re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", self.size)):
            message = f"size is {self.size!r}; it must be auto or WIDTHxHEIGHT, such as 1024x1024"
            raise ApiError(422, message, param="size", code="invalid_value")
        return int(match[2]), int(match[1])

    def requests(
        self, characters: Sequence[Character], original: Original | None = None
    ) -> list[DrawingRequest]:
        """Return the engine's requests, one for each picture."""
        own = {f.name for f in fields(DrawingRequest)} & {f.name for f in fields(self)}
        own -= {"seed", "subject", "loras"}
        values = {name: getattr(self, name) for name in own} | self._subjects(characters)
        seed = secrets.randbelow(2**32 - self.n) if self.seed is None else self.seed
        height, width = self.sides
        return [
            DrawingRequest(
                seed=seed + i,
                height=height,
                width=width,
                original=original,
                loras=tuple(self.loras.items()),
                **values,
            )
            for i in range(self.n)
        ]

    def _subjects(self, characters: Sequence[Character]) -> dict[str, Any]:
        """Return the arguments of the engine's request that say the characters."""
        scales, count = self.subject_scale, len(characters)
        if count < 2 and not self.regions and not isinstance(scales, list):
            return {"subject": characters[0] if characters else None}
        listed = scales if isinstance(scales, list) else [None] * count
        for name, values in (("regions", self.regions or characters), ("subject_scale", listed)):
            if len(values) != count:
                message = f"{len(values)} {name} for {count} characters; give one for each"
                raise ApiError(422, message, param=name, code="invalid_value")
        regions = map(_region, self.regions) if self.regions else [None] * count
        placed = map(PlacedCharacter, characters, listed, regions)
        return {
            "subjects": tuple(placed),
            "subject_scale": None if isinstance(scales, list) else scales,
        }


# Fields by the arguments that they set, which errors name.
PARAMS = {f.name: f.name for f in fields(Fields)} | {
    "height": "size",
    "width": "size",
    "region": "regions",
}


def read_fields(values: Mapping[str, Any]) -> Fields:
    """Return the fields of a request.

    Raises:
        ApiError: an unknown field, one that has no effect here, or a value that cannot be used.
    """
    known = [f.name for f in fields(Fields)]
    for name, value in values.items():
        if name in WITHOUT_EFFECT:
            if value is not None and value not in WITHOUT_EFFECT[name]:
                message = f"{name} {value!r} has no effect here; leave it out"
                raise ApiError(422, message, param=name, code="unsupported_parameter")
        elif name not in known:
            message = f"unknown field {name}{nearest(name, known)}"
            raise ApiError(422, message, param=name, code="unknown_parameter")
    try:
        return dataclass_from_dict(Fields, {k: v for k, v in values.items() if k in known})
    except ConfigError as error:
        param = PARAMS.get(str(error).partition(" ")[0])
        raise ApiError(422, str(error), param=param, code="invalid_value") from None


def form_values(items: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the values of a form's texts, `loras[ink]` and `regions[]` as a table and a list.

    Raises:
        ApiError: a field is given twice.
    """
    texts = {f.name for f in fields(Fields) if f.type in (str, str | None)} | {"subject"}
    values: dict[str, Any] = {}
    for key, text in items:
        name, _, inner = key.partition("[")
        value = text if name in texts else _parsed(text)
        if inner == "]" and isinstance(listed := values.setdefault(name, []), list):
            listed.append(value)
            continue
        table = values.setdefault(name, {}) if inner else values
        entry = inner.removesuffix("]") if inner else name
        if not isinstance(table, dict) or entry in table:
            raise ApiError(422, f"{key} is given twice", param=name, code="invalid_value")
        table[entry] = value
    return values


def _region(text: str) -> Region:
    """Return a region; a text that is no box is a name, or refused by the engine."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        return text


def _parsed(text: str) -> Any:
    try:
        return parse_json(text, "")
    except ValueError:
        return text
