"""Checks of what a caller asks for: each failure is one line with the value and the remedy."""

import math
from collections.abc import Sequence
from typing import Any

MAX_SIDE = 4096  # pixels; FLUX was trained up to about 2 megapixels


def check_size(height: int, width: int, multiple: int) -> None:
    """Sides in pixels that the VAE and the 2 x 2 packing divide."""
    for name, side in (("height", height), ("width", width)):
        if not isinstance(side, int) or isinstance(side, bool):
            raise ValueError(f"{name} is {side!r}; it must be a whole number of pixels")
        if side % multiple or not 0 < side <= MAX_SIDE:
            nearest = min(max(round(side / multiple), 1) * multiple, MAX_SIDE)
            raise ValueError(
                f"{name} is {side}; it must be a multiple of {multiple} from {multiple} to "
                f"{MAX_SIDE}, such as {nearest}"
            )


def check_finite(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be a finite number")
    return float(value)


def check_count(name: str, value: int, most: int | None = None) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number {limits}")
    return value


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def check_shape(name: str, array: Any, shape: tuple[int | None, ...]) -> None:
    """None stands for any size."""
    found = tuple(array.shape)
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


def as_list(name: str, value: str | Sequence[str]) -> list[str]:
    """One prompt or several, as a list; what is in it, the tokenizer checks."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError(f"{name} is an empty list; give at least one text")
    return values  # type: ignore[return-value]


def seeds(value: int | Sequence[int], prompts: int, images_each: int) -> list[int]:
    """Each picture's seed: seed, seed + 1, ... for every prompt, or as listed."""
    if isinstance(value, int):
        values = [value + i for i in range(images_each)] * prompts
    else:
        values = list(value)
        if len(values) != prompts * images_each:
            raise ValueError(
                f"{len(values)} seeds for {prompts * images_each} pictures; give one for each"
            )
    for seed in values:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed!r} is not a whole number from 0 to {2**32 - 1}")
    return values
