"""Reader of dataclasses from TOML and JSON values, and of KEY=VALUE on a command line."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

ITEMS = {str: "texts", int: "integers", float: "numbers"}


class ConfigError(ValueError):
    """A setting, or a file of settings, that cannot be used."""


def dataclass_from_dict(cls: Any, values: Any, prefix: str = "") -> Any:
    """Build the dataclass `cls` from a table of values.

    Lists become tuples, integers become floats and texts become paths where the field says so;
    tables become dataclasses.

    Args:
        prefix: what precedes a key in error messages, such as "stage1.".

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a missing key, a value of
            another type, or a value that the class itself refuses.
    """
    if not isinstance(values, Mapping):
        place = prefix.rstrip(".") or cls.__name__
        raise ConfigError(f"{place} is {shown(values)}; it must be a table")
    known = {f.name: f for f in fields(cls)}
    refuse_unknown(values, known, prefix)
    types = get_type_hints(cls)
    typed = {name: _typed(types[name], value, prefix + name) for name, value in values.items()}
    required = [f.name for f in known.values() if f.default is f.default_factory is MISSING]
    if missing := [prefix + name for name in required if name not in values]:
        raise ConfigError(f"{', '.join(missing)} {'are' if missing[1:] else 'is'} missing")
    try:
        return cls(**typed)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def refuse_unknown(names: Iterable[str], known: Iterable[str], prefix: str = "") -> None:
    """Raise ConfigError for the first of `names` that is not `known`."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown key {prefix}{name:.80}{nearest(name, known)}")


def nearest(name: str, known: list[str], *, listed: bool = True) -> str:
    """Return the end of an error message: the known name nearest to `name`, or all if `listed`."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known are {', '.join(known)}" if listed else ""


def parse_change(change: str, example: str) -> tuple[str, Any]:
    """Return key and value of "KEY=VALUE", whose value is TOML or else a bare text.

    Raises:
        ConfigError: there is no equals sign.
    """
    key, equals, text = change.partition("=")
    if not equals:
        raise ConfigError(f"--set {change}: write KEY=VALUE, such as {example}")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return key.strip(), text


def _typed(kind: Any, value: Any, name: str) -> Any:
    if get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind):
        if value is None:
            return None
        kind = Union[tuple(k for k in get_args(kind) if k is not NoneType)]  # noqa: UP007
    if is_dataclass(kind) and not isinstance(value, kind):  # type: ignore[arg-type]
        return dataclass_from_dict(kind, value, f"{name}.")
    if get_origin(kind) is tuple:
        (item, _) = get_args(kind)
        if not isinstance(value, list | tuple) or not all(_is(item, x) for x in value):
            raise ConfigError(f"{name} is {shown(value)}; it must be a list of {ITEMS[item]}")
        return tuple(_number(item, x, name) for x in value)
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    if kind in (int, float, str, bool):
        if not _is(kind, value):
            raise ConfigError(f"{name} is {shown(value)}; it must be of type {kind.__name__}")
        return _number(kind, value, name)
    return value


def shown(value: Any) -> str:
    """Return a value for an error message, shortened to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_few(names: Iterable[str], count: int = 10) -> str:
    """Return the first names for an error message, and dots where there are more."""
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if names[count:] else "")


def _number(kind: Any, value: Any, name: str) -> Any:
    try:
        return kind(value)
    except OverflowError:
        raise ConfigError(
            f"{name} is {shown(value)}, too large to convert to {kind.__name__}"
        ) from None


def _is(kind: Any, value: Any) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)
