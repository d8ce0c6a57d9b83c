"""Checks of a recipe's numbers, and the most that some may be."""

from typing import Any

from ic_jax.from_dict import ConfigError, shown

# What a wrong number would otherwise ask of all memory, or of all time, for.
MAX_STEPS = 10**8
MAX_BATCH = 2**20  # samples of a step
MAX_RESOLUTION = 4096  # pixels, those of the largest picture that is drawn
MAX_SUBJECTS = 8  # characters of a picture; a step has a reference for each
MAX_TEXT_LENGTH = 512  # T5's tokens in FLUX


def check_range(settings: Any, name: str, least: float, most: float) -> None:
    """Raise ConfigError unless a field of `settings` is from `least` to `most`."""
    value = getattr(settings, name)
    limit = least if value < least else most
    check(least <= value <= most, name, value, f"at {'least' if value < least else 'most'} {limit}")


def check(holds: bool, name: str, value: Any, expected: str) -> None:
    """Raise ConfigError unless a value is as expected."""
    if not holds:
        raise ConfigError(f"{name} is {shown(value)}; it must be {expected}")
