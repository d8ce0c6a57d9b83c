"""Translation of published config files to ic_jax's configs and back."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from convert.published import OTHER_CHANNELS, OTHER_CLASSES, OTHERWISE, PUBLISHED
from ic_jax.config import AdapterConfig, ConfigError
from ic_jax.from_dict import shown
from ic_jax.text_files import read_text
from ic_jax.untrusted_files import parse_json
from ic_jax.weights.loading import config_class
from ic_jax.weights.safetensors_io import AGAIN
from ic_jax.weights.tensors import OtherWeightsError, WeightsError

ORIGINAL = "published.json"  # in a MODEL's component: the config that it was converted from


def refuse_other(path: Path, value: Any, others: Mapping[Any, str]) -> None:
    """Raise OtherWeightsError if `value`, of a config or a shape, is that of another model."""
    if isinstance(value, str | int) and value in others:
        raise OtherWeightsError(f"{path}: is {others[value]}; {OTHERWISE}")


def from_published(component: str, values: dict[str, Any], path: Path) -> Any:
    """Return the config of a published config file.

    Raises:
        WeightsError: another class of model, or a value that our module does not compute.
    """
    published = PUBLISHED[component]
    _check_class(component, values, path)
    values = _tower(component, values, path)
    if component == "transformer" and values.get("out_channels") == values.get("in_channels"):
        values = {**values, "out_channels": None}
    wrong = []
    for name, (default, supported) in published.fixed.items():
        value = values.get(name, default)
        if isinstance(supported, list) and isinstance(value, list) and value:  # one entry per level
            value = [x for i, x in enumerate(value) if x not in value[:i]]
        if value != supported:
            wrong.append(f"{name} {shown(value)}, supported is {supported!r}")
    if wrong:
        raise WeightsError(f"{path}: {'; '.join(wrong)}")
    cls = config_class(component)
    read = {f.name: values[f.name] for f in fields(cls) if f.name in values}
    sizes = published.defaults | read
    if component == "vae" and sizes["shift_factor"] is None:
        sizes["shift_factor"] = 0.0
    return build(cls, sizes, path)


def as_published(component: str, values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a published config as the component's class writes it, without other towers."""
    published = PUBLISHED[component]
    return _tower(component, values, path) | published.names


def _tower(component: str, values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the values of the component's own tower, in a config of one or of several."""
    inside = PUBLISHED[component].inside
    tower = values.get(inside, values)
    if not isinstance(tower, dict):
        raise WeightsError(f"{path}: {inside} is {shown(tower)}; it must be a table")
    return tower


def build(cls: Any, values: dict[str, Any], path: Path) -> Any:
    """Call `cls.from_dict`; raise its errors with the file's name."""
    try:
        return cls.from_dict(values)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from None


def is_class(component: str, values: dict[str, Any]) -> bool:
    """Return whether a published config is of the component's class."""
    published, key = PUBLISHED[component], _class_key(component)
    return values.get(key) in (published.names[key], *published.also)


def _class_key(component: str) -> str:
    return "_class_name" if "_class_name" in PUBLISHED[component].names else "model_type"


def _check_class(component: str, values: dict[str, Any], path: Path) -> None:
    published, key = PUBLISHED[component], _class_key(component)
    refuse_other(path, values.get(key), OTHER_CLASSES)
    if not is_class(component, values):
        name = shown(values.get(key))
        raise WeightsError(f"{path}: {key} is {name}, expected {published.names[key]!r}")
    if component == "transformer":
        refuse_other(path, values.get("in_channels"), OTHER_CHANNELS)


def to_published(
    component: str, config: Any, original: dict[str, Any] | None = None, path: Path = Path()
) -> dict[str, Any]:
    """Return the published form of a config.

    Args:
        original: the published config that the model was converted from, every value of which
            is kept unless `config` has changed it.
        path: the file that holds `original`, for error messages.
    """
    published = PUBLISHED[component]
    if original is not None:
        before = from_published(component, original, path).to_dict()
        return original | {k: v for k, v in config.to_dict().items() if v != before[k]}
    values = published.names | {name: value for name, (_, value) in published.fixed.items()}
    values |= published.assumed | config.to_dict()
    if component == "vae":
        for name in ("down_block_types", "up_block_types"):
            values[name] = values[name] * len(config.block_out_channels)
    return values


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; WeightsError says where the file is none."""
    try:
        values = parse_json(read_text(path), str(path))
    except ValueError as error:
        raise WeightsError(f"{error}; {AGAIN}") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: is not a JSON object; {AGAIN}")
    return values


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read the adapter's config; raise WeightsError if the file holds none."""
    return build(AdapterConfig, read_object(path), path)
