"""Meaning of the keys of a LoRA file, by the table of layouts."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from ic_jax.weights.bfl_names import HALVES_SWAPPED
from ic_jax.weights.lora.layouts import IGNORED, LAYOUTS, REFUSED, Layout


@dataclass(frozen=True)
class Key:
    """Meaning of a key.

    Attributes:
        layout: its name.
        component: "transformer", "clip" or "t5".
        modules: published names of the linear maps that the rows of B are for, in order.
        part: "a", "b", "bias" (of B) or "alpha".
        adapter: peft's name within the key; empty if it has none.
        swapped: whether the halves of B's rows are in BFL's order.
    """

    layout: str
    component: str
    modules: tuple[str, ...]
    part: str
    adapter: str
    swapped: bool


def meaning(key: str) -> Key | None:
    """Return what a key means; None if no layout has it."""
    for layout, pattern, names in _patterns():
        match = pattern.fullmatch(key)
        module = None if match is None else _module(match["module"], names, layout.separator)
        if match is None or module is None or (part := _part(match.groupdict())) is None:
            continue
        name, number = module
        modules = tuple(x.replace("*", number) for x in layout.names.modules[name])
        adapter = match.groupdict().get("adapter") or ""
        component, swapped = layout.names.component, name == HALVES_SWAPPED
        return Key(layout.name, component, modules, part, adapter, swapped)
    return None


def refusal(key: str) -> tuple[str, str] | None:
    """Return the kind of file that has such a key, and why it is refused; None if it is not."""
    return next(((kind, why) for p, kind, why in REFUSED if re.fullmatch(p, key)), None)


def passed_over(key: str) -> str | None:
    """Return what is passed over with a key; None if the key is not."""
    return next((what for pattern, what in IGNORED if re.fullmatch(pattern, key)), None)


def kind_of(keys: Iterable[str]) -> str | None:
    """Return what a file with these keys is, a LoRA that is read or refused; None if it is none."""
    keys = list(keys)
    known = [read for key in keys if (read := meaning(key))]
    if not known:
        return None
    if refused := next((why for key in keys if (why := refusal(key))), None):
        return ": ".join(refused)
    layouts = Counter(key.layout for key in known).most_common()
    unknown = len(keys) - len(known) - sum(passed_over(key) is not None for key in keys)
    rest = f"; {unknown} of its {len(keys)} keys are unknown" if unknown else ""
    return f"a LoRA in the layout of {' and '.join(name for name, _ in layouts)}{rest}"


@cache
def _patterns() -> list[tuple[Layout, re.Pattern, dict[str, str]]]:
    """Return every layout with its patterns of keys, and its modules by name as in a key."""
    return [
        (
            layout,
            re.compile(f"{layout.prefix}(?P<module>.+?){matrices}"),
            {name.replace(".", layout.separator): name for name in layout.names.modules},
        )
        for layout in LAYOUTS
        for matrices in layout.matrices
    ]


def _part(groups: dict[str, str | None]) -> str | None:
    if groups["alpha"]:
        return "alpha"
    is_bias = groups["field"] == "bias"
    if groups["matrix"] in ("A", "down"):
        return None if is_bias else "a"
    return "bias" if is_bias else "b"


def _module(text: str, names: dict[str, str], separator: str) -> tuple[str, str] | None:
    """Return a module's name, and the number of its block or ""; None for an unknown module."""
    if text in names:
        return names[text], ""
    between = re.escape(separator)
    number = re.search(rf"(?<={between})\d+(?={between})", text)
    if number is None:
        return None
    starred = f"{text[: number.start()]}*{text[number.end() :]}"
    return (names[starred], str(int(number[0]))) if starred in names else None
