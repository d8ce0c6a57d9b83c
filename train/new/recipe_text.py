"""Text of a recipe: TOML with every key, its default and where that comes from."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

import train.recipe
from ic_jax.config import AdapterConfig
from train.recipe import TABLES, LoraConfig, Recipe, Reporting, Saving, Stage

WIDTH = 100
COMMENT = re.compile(r"^    (\w+): [^#\n]*#\s*(.+)$", re.MULTILINE)
Reasons = Mapping[str, str]  # by path, such as "stage1.steps"


def recipe_text(recipe: Recipe, reasons: Reasons, header: str = "") -> str:
    """Return a recipe as TOML that `train.recipe.read_recipe` reads back to the same recipe.

    The first stage lists all keys of a stage; a later one those that differ from the default.

    Args:
        reasons: why a key has its value, by the key's path.
        header: text that precedes the recipe, as a comment.
    """
    values = recipe.to_dict()
    parts = [_comment(header), _comment(_sources())]
    own = [f for f in fields(Recipe) if f.name not in TABLES]
    parts.append(_lines(Recipe, own, values, "", reasons))
    if isinstance(values["adapter"], Mapping):
        parts.append(_table("adapter", AdapterConfig, values, reasons))
    if recipe.lora:
        parts.append(_table("lora", LoraConfig, values, reasons))
    first, *later = recipe.stages
    parts.append(_table(first, Stage, values, reasons))
    parts += [_table(name, Stage, values, reasons, brief=True) for name in later]
    parts += [_table("saving", Saving, values, reasons)]
    parts += [_table("reporting", Reporting, values, reasons)]
    return "\n".join(filter(None, parts))


def changed_text(recipe: Recipe) -> str:
    """Return the keys of a recipe that differ from their defaults as TOML, without comments."""
    values = recipe.to_dict()
    tables = {"saving": Saving, "reporting": Reporting} | dict.fromkeys(recipe.stages, Stage)
    if recipe.lora:
        tables["lora"] = LoraConfig
    lines = []
    for field in fields(Recipe):
        value = values.get(field.name)
        if field.name not in TABLES and not isinstance(value, Mapping) and _differs(field, value):
            lines.append(f"{field.name} = {toml_value(value)}")
    if isinstance(values["adapter"], Mapping):
        sizes = (f"{k} = {toml_value(v)}" for k, v in values["adapter"].items() if v is not None)
        lines += ["", "[adapter]", *sizes]
    for name, cls in tables.items():
        changed = [f for f in fields(cls) if _differs(f, values[name][f.name])]
        if changed or cls is Stage:
            lines += ["", f"[{name}]"]
        lines += [f"{f.name} = {toml_value(values[name][f.name])}" for f in changed]
    return "\n".join(lines) + "\n"


def field_comments(cls: type) -> dict[str, str]:
    """Return the comment beside each field of a dataclass, from its source."""
    return dict(COMMENT.findall(inspect.getsource(cls)))


def toml_value(value: Any) -> str:
    """Return a value as TOML: JSON, whose texts, numbers and lists TOML shares."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _table(
    name: str, cls: type, values: Mapping[str, Any], reasons: Reasons, *, brief: bool = False
) -> str:
    table = values[name]
    chosen = [f for f in fields(cls) if table[f.name] is not None]
    heading = f"[{name}]"
    if brief:
        chosen = [f for f in chosen if _differs(f, table[f.name])]
        heading += "  # keys that are not here have the default, not the value of stage 1"
    if name in reasons:
        heading = f"{_comment(reasons[name])}{heading}"
    return f"{heading}\n{_lines(cls, chosen, table, f'{name}.', reasons, brief=brief)}"


def _lines(
    cls: type,
    chosen: list[Field],
    values: Mapping[str, Any],
    prefix: str,
    reasons: Reasons,
    *,
    brief: bool = False,
) -> str:
    comments = {} if brief else field_comments(cls)
    lines: list[str] = []
    for field in chosen:
        value = values[field.name]
        if isinstance(value, Mapping):
            continue  # a table of its own
        lines += _line(field, value, comments.get(field.name, ""), reasons.get(prefix + field.name))
    return "\n".join(lines) + "\n"


def _line(field: Field, value: Any, comment: str, reason: str | None) -> Iterator[str]:
    """Yield the key with its comment, which precedes it where the line would be too long."""
    setting = f"{field.name} = {toml_value(value)}"
    remarks = [comment, reason or ""]
    if _differs(field, value) and field.default not in (MISSING, None):
        remarks.append(f"default {toml_value(field.default)}")
    remark = "; ".join(filter(None, remarks))
    if not remark:
        yield setting
    elif len(setting) + len(remark) + 4 <= WIDTH:
        yield f"{setting}  # {remark}"
    else:
        yield from _comment(remark).splitlines()
        yield setting


def _differs(field: Field, value: Any) -> bool:
    default = field.default
    return list(default) != list(value) if isinstance(default, tuple) else default != value


def _comment(text: str) -> str:
    lines = [
        line
        for paragraph in text.splitlines()
        for line in textwrap.wrap(paragraph, WIDTH - 2, break_long_words=False) or [""]
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _sources() -> str:
    """Return the explanation of the sources' short names, from the module's docstring."""
    _, sources = (train.recipe.__doc__ or "\n\n").split("\n\n", 1)
    return " ".join(sources.split())
