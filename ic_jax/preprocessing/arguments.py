"""Checks of a caller's arguments: each failure is one line with the value and the remedy."""

import math
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from ic_jax.config import SamplingConfig

MAX_SIDE = 4096  # pixels; FLUX was trained up to about 2 megapixels


@dataclass(frozen=True)
class SamplingArguments:
    """The numbers and choices of a call that can be checked without a model.

    `true_cfg_scale` is 1 and `negative_subject_scale` None without true guidance; `strength` is
    None without a picture to draw over.
    """

    height: int
    width: int
    num_inference_steps: int
    sigmas: Sequence[float] | None
    guidance_scale: float
    true_cfg_scale: float
    num_images_per_prompt: int
    subject_scale: float
    negative_subject_scale: float | None
    subject_fit: str
    max_sequence_length: int
    output_type: str
    strength: float | None = None
    subject_start: float = 0.0
    subject_end: float = 1.0
    subject_ramp: float = 0.0
    subject_blocks: str = "all"  # or "double", "single", or numbers: "0,1,18"

    def __post_init__(self) -> None:
        """Convert every field to its plain type; ValueError names the first that cannot be."""
        checked: dict[str, Any] = {
            "guidance_scale": check_finite("guidance_scale", self.guidance_scale),
            "true_cfg_scale": check_finite("true_cfg_scale", self.true_cfg_scale, 1),
            "subject_scale": check_finite("subject_scale", self.subject_scale, 0),
        }
        if self.negative_subject_scale is not None:
            name = "negative_subject_scale"
            checked[name] = check_finite(name, self.negative_subject_scale, 0)
        for name in ("subject_start", "subject_end", "subject_ramp"):
            checked[name] = check_share(name, getattr(self, name))
        if checked["subject_start"] > checked["subject_end"]:
            raise ValueError(
                f"subject_start {self.subject_start} is after subject_end {self.subject_end}; "
                "give them in order"
            )
        checked["subject_blocks"] = check_blocks("subject_blocks", self.subject_blocks)
        for name in ("height", "width", "num_inference_steps", "num_images_per_prompt"):
            checked[name] = check_count(name, getattr(self, name))
        checked["max_sequence_length"] = check_count(
            "max_sequence_length", self.max_sequence_length, 512
        )
        if self.strength is not None:
            checked["strength"] = check_finite("strength", self.strength)
            if not 0 < checked["strength"] <= 1:
                raise ValueError(f"strength is {self.strength}; it must be within (0, 1]")
        if self.sigmas is not None:
            checked["sigmas"] = check_sigmas(self.sigmas)
        check_choice("subject_fit", self.subject_fit, ("pad", "stretch"))
        check_choice("output_type", self.output_type, ("pil", "np", "latent"))
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def check_size(self, multiple: int) -> None:
        """Raise ValueError unless a token's `multiple` pixels divide both sides."""
        for name, side in (("height", self.height), ("width", self.width)):
            if side % multiple or side > MAX_SIDE:
                nearest = min(max(round(side / multiple), 1) * multiple, MAX_SIDE)
                raise ValueError(
                    f"{name} is {side}; it must be a multiple of {multiple} from {multiple} to "
                    f"{MAX_SIDE}, such as {nearest}"
                )


def sampling_arguments(
    defaults: SamplingConfig, *, has_negative: bool, **values: Any
) -> SamplingArguments:
    """Check a call's arguments and fill in the model's defaults where they are None.

    True guidance needs a `true_cfg_scale` above 1 and something to guide away from: a negative
    prompt, or a `negative_subject_scale` (a model's default counts), for which an absent negative
    prompt is an empty one. The scale without a negative, or the reverse, is an error.

    Args:
        defaults: the model's own.
        has_negative: whether there is a negative prompt, as text or embeddings.
        values: the fields of `SamplingArguments`.

    Raises:
        ValueError: a value that cannot be used.
    """
    filled = values | {k: v for k, v in defaults.to_dict().items() if values.get(k) is None}
    args = SamplingArguments(**filled)
    if args.true_cfg_scale == 1:
        negatives = {
            "a negative prompt": has_negative,
            "negative_subject_scale": values["negative_subject_scale"] is not None,
        }
        for name in (name for name, is_given in negatives.items() if is_given):
            raise ValueError(f"{name} does nothing at true_cfg_scale 1; give a larger one, say 2")
    elif has_negative or args.negative_subject_scale is not None:
        if args.negative_subject_scale is None:
            return replace(args, negative_subject_scale=args.subject_scale)
        return args
    elif values["true_cfg_scale"] is not None:
        raise ValueError(
            f"true_cfg_scale {args.true_cfg_scale:g} does nothing without a negative prompt; "
            "give one, which may be empty"
        )
    return replace(args, true_cfg_scale=1.0, negative_subject_scale=None)


def check_sigmas(sigmas: Any) -> tuple[float, ...]:
    """Return noise levels as floats; they must fall strictly within (0, 1], as in diffusers."""
    levels = np.asarray(sigmas, np.float64)
    falling = levels.ndim == 1 and levels.size and np.all(np.diff(levels) < 0)
    if not (falling and levels[-1] > 0 and levels[0] <= 1):
        raise ValueError(f"sigmas {sigmas} must be a list that falls strictly, within (0, 1]")
    return tuple(map(float, levels))


def check_finite(name: str, value: Any, minimum: float | None = None) -> float:
    """Return a number as a float; ValueError if it is not finite or less than `minimum`."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or (minimum is not None and value < minimum):
        limit = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"{name} is {value!r}; it must be a finite number{limit}")
    return float(value)


def check_share(name: str, value: Any) -> float:
    """Return a number as a float; ValueError unless it is from 0 to 1."""
    if (share := check_finite(name, value, 0)) > 1:
        raise ValueError(f"{name} is {value!r}; it must be a number from 0 to 1")
    return share


def check_blocks(name: str, value: Any) -> str:
    """Return a choice of blocks as text: "all", "double", "single" or numbers such as "0,1,18".

    Numbers may be a list, or a text with ranges: "0-3,18". ValueError for anything else.
    """
    if value in ("all", "double", "single"):
        return value
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, Iterable):
        ranges = [re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", str(x).strip()) for x in items]
        ends = [(int(m[1]), int(m[2] or m[1])) for m in ranges if m is not None]
        if ends and len(ends) == len(ranges) and all(first <= last for first, last in ends):
            numbers = {n for first, last in ends for n in range(first, last + 1)}
            return ",".join(map(str, sorted(numbers)))
    raise ValueError(
        f"{name} is {value!r}; it must be 'all', 'double', 'single' or numbers of blocks such as "
        "0-3,18"
    )


def check_count(name: str, value: Any, maximum: int | None = None) -> int:
    """Return a positive integer as an int; ValueError for any other value."""
    count = _as_int(value)
    if count is None or count < 1 or (maximum is not None and count > maximum):
        limits = "at least 1" if maximum is None else f"from 1 to {maximum}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number {limits}")
    return count


def _as_int(value: Any) -> int | None:
    """Return an integer of any type as an int; None for any other value, bool included."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is among `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def check_shape(name: str, array: Any, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless an array has `shape`, in which None stands for any size."""
    actual = np.shape(array)
    fits = len(actual) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, actual, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} has shape {list(actual)}; expected [{wanted}]")


def common_count(**lengths: int | None) -> int:
    """Return the common length of lists; a list of length 1 repeats, None is an absent list."""
    present = {name: n for name, n in lengths.items() if n is not None}
    longest = max(present.values())
    if any(n not in (1, longest) for n in present.values()):
        listed = " and ".join(f"{n} {name}" for name, n in present.items())
        raise ValueError(f"{listed} do not go together; give as many of each, or one for all")
    return longest


def as_list(name: str, value: Any) -> list:
    """Return a list or tuple as a list, anything else as a list of one; ValueError if empty."""
    values = list(value) if type(value) in (list, tuple) else [value]
    if not values:
        raise ValueError(f"{name} is an empty list; give at least one")
    return values


def seeds(value: Any, prompts: int, images_each: int) -> list[int]:
    """Return each picture's seed: seed, seed + 1, ... for every prompt, or as listed."""
    first = _as_int(value)
    if first is not None:
        values = [first + i for i in range(images_each)] * prompts
    elif isinstance(value, Iterable):
        values = list(value)
        if len(values) != prompts * images_each:
            raise ValueError(
                f"{len(values)} seeds for {prompts * images_each} pictures; give one for each"
            )
    else:
        values = [value]
    for seed in values:
        if _as_int(seed) is None or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed!r} is not a whole number from 0 to {2**32 - 1}")
    return [int(seed) for seed in values]
