"""Base of the configs, and ranges of their numbers.

A range stands beside the type: `num_layers: Annotated[int, Range(0, 99)]`.
"""

from dataclasses import asdict, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

from ic_jax.from_dict import ConfigError, dataclass_from_dict, shown


@dataclass(frozen=True)
class Range:
    """Least and most that a number, or each number of a tuple, may be."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"


# Where a field names none. The most keeps wrong files from asking for all memory there is.
DEFAULTS = {int: Range(1, 2**24), float: Range(-1e6, 1e6)}
MOST_ITEMS = 100  # of a tuple


class Config:
    """Base of the configs: a frozen dataclass whose numbers are in their ranges."""

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, range_ in _ranges(cls).items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            self._check(
                0 < len(numbers) <= MOST_ITEMS,
                f"{name} has {len(numbers)} numbers; it must have 1 to {MOST_ITEMS}",
            )
            in_range = (x is None or range_.least <= x <= range_.most for x in numbers)
            self._check(all(in_range), f"{name} is {shown(value)}; it must be {range_}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a config from JSON values.

        Raises:
            ConfigError: a field is unknown, missing, of another type or impossible.
        """
        start = f"{cls.__name__}: "
        try:
            return dataclass_from_dict(cls, values)
        except ConfigError as error:
            raise ConfigError(start + str(error).removeprefix(start)) from None

    def _check(self, holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(f"{type(self).__name__}: {message}")

    def _check_heads(self, width: int, heads: int) -> None:
        self._check(width % heads == 0, f"width {width} does not divide by {heads} heads")

    def _check_patches(self, side: int, patch: int) -> None:
        self._check(patch <= side, f"a patch of {patch} pixels is larger than images of {side}")


@cache
def _ranges(cls: Any) -> dict[str, Range]:
    """Return the range of each field that is a number or a tuple of numbers."""
    types = get_type_hints(cls, include_extras=True)
    ranges = {f.name: _range(types[f.name]) for f in fields(cls)}
    return {name: range_ for name, range_ in ranges.items() if range_ is not None}


def _range(kind: Any) -> Range | None:
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (k for k in get_args(kind) if k is not NoneType)
    if get_origin(kind) is tuple:
        kind, _ = get_args(kind)
    if get_origin(kind) is Annotated:
        return next(x for x in get_args(kind) if isinstance(x, Range))
    return DEFAULTS.get(kind)
