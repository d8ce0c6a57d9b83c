"""Checks of what a caller asks for: each failure is one line with the value and the remedy."""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ic_jax.config import SamplingConfig

MAX_SIDE = 4096  # pixels; FLUX was trained up to about 2 megapixels


@dataclass(frozen=True)
class Settings:
    """The numbers and choices of a request that can be checked without a model."""

    height: int
    width: int
    num_inference_steps: int
    sigmas: Sequence[float] | None
    guidance_scale: float
    true_cfg_scale: float
    num_images_per_prompt: int
    subject_scale: float
    negative_subject_scale: float
    subject_fit: str
    max_sequence_length: int
    output_type: str

    def __post_init__(self) -> None:
        """Bring every field to its plain type; ValueError names the first that has none."""
        scales = ("guidance_scale", "true_cfg_scale", "subject_scale", "negative_subject_scale")
        checked: dict[str, Any] = {name: check_finite(name, getattr(self, name)) for name in scales}
        for name in ("height", "width", "num_inference_steps", "num_images_per_prompt"):
            checked[name] = check_count(name, getattr(self, name))
        checked["max_sequence_length"] = check_count(
            "max_sequence_length", self.max_sequence_length, 512
        )
        if self.sigmas is not None:
            checked["sigmas"] = check_levels(self.sigmas)
        check_choice("subject_fit", self.subject_fit, ("pad", "stretch"))
        check_choice("output_type", self.output_type, ("pil", "np", "latent"))
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def check_size(self, multiple: int) -> None:
        """Sides that the VAE and the 2 x 2 packing divide: `multiple` pixels to a token."""
        for name, side in (("height", self.height), ("width", self.width)):
            if side % multiple or side > MAX_SIDE:
                nearest = min(max(round(side / multiple), 1) * multiple, MAX_SIDE)
                raise ValueError(
                    f"{name} is {side}; it must be a multiple of {multiple} from {multiple} to "
                    f"{MAX_SIDE}, such as {nearest}"
                )


def settings(own: SamplingConfig, **given: Any) -> Settings:
    """Checked settings: what is given, and the model's own where that is None."""
    values = own.to_dict()
    values = given | {k: v for k, v in values.items() if given.get(k) is None}
    if values["negative_subject_scale"] is None:
        values["negative_subject_scale"] = values["subject_scale"]
    return Settings(**values)


def check_levels(sigmas: Any) -> tuple[float, ...]:
    """Noise levels as diffusers takes them: falling, in 0..1, 0 excluded."""
    levels = np.asarray(sigmas, np.float64)
    falling = levels.ndim == 1 and levels.size and np.all(np.diff(levels) < 0)
    if not (falling and levels[-1] > 0 and levels[0] <= 1):
        raise ValueError(f"sigmas {sigmas} must be a list that falls strictly, within (0, 1]")
    return tuple(map(float, levels))


def check_finite(name: str, value: Any) -> float:
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be a finite number")
    return float(value)


def check_count(name: str, value: Any, most: int | None = None) -> int:
    count = _whole(value)
    if count is None or count < 1 or (most is not None and count > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number {limits}")
    return count


def _whole(value: Any) -> int | None:
    """A whole number of any type as an int; None for anything else, True and False too."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def check_shape(name: str, array: Any, shape: tuple[int | None, ...]) -> None:
    """None stands for any size."""
    found = np.shape(array)
    fits = len(found) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, found, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} has shape {list(found)}; expected [{wanted}]")


def common_count(**counts: int | None) -> int:
    """The length that several lists share, each of that length, of length one, or None."""
    given = {name: n for name, n in counts.items() if n is not None}
    most = max(given.values())
    if any(n not in (1, most) for n in given.values()):
        found = " and ".join(f"{n} {name}" for name, n in given.items())
        raise ValueError(f"{found} do not go together; give as many of each, or one for all")
    return most


def as_list(name: str, value: Any) -> list:
    """One thing or several, as a list that is not empty."""
    values = list(value) if type(value) in (list, tuple) else [value]
    if not values:
        raise ValueError(f"{name} is an empty list; give at least one")
    return values


def seeds(value: Any, prompts: int, images_each: int) -> list[int]:
    """Each picture's seed: seed, seed + 1, ... for every prompt, or as listed."""
    first = _whole(value)
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
        if _whole(seed) is None or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed!r} is not a whole number from 0 to {2**32 - 1}")
    return [int(seed) for seed in values]
