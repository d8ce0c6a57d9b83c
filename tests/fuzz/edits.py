"""Hypothesis strategies that damage a valid file: its bytes, or the values that it holds."""

import copy
import io
import json
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

# Pieces of text on which parsers and readers are known to fail.
TOKENS = [
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b"\\", b"{", b"]", b",", b"=", b"\t"),
    *(b"NaN", b"-Infinity", b"1e999", b"null", b"true", b'"\\ud800"', b"{}", b"[]", b"-1", b"0"),
    *(b"9" * 5000, b"[" * 2000, b"a" * 5000, "\u2028\u0085".encode(), b"\xed\xa0\x80"),
]
# Values in place of those that a reader expects.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, 2**64, 10**30, -(2**63)),
    *(0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")),
    *(
        "",
        "a",
        "0",
        "\0",
        "\ud800",
        "\n",
        "../a",
        "/etc/passwd",
        "~",
        "a" * 3000,
        ".*" * 30,
        "(a+)+$",
    ),
    *([], [[]], [None], [0] * 300, ["a"], [1.5], {}, {"a": {}}, {"": None}),
]
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


@dataclass(frozen=True)
class Form:
    """How the values of a file are read from its bytes, and written back."""

    values: Callable[[bytes], Any]
    file: Callable[[Any, bytes], bytes]  # of changed values, and the file that they were in


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Return `data` with one to four edits: bytes set, inserted, removed, repeated or cut off."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 100]))
        match draw(st.sampled_from(["set", "insert", "remove", "repeat", "cut", "tokens"])):
            case "set":
                new = bytes([draw(st.sampled_from(INTERESTING) | st.integers(0, 255))]) * length
                data = data[:at] + new[: len(data) - at] + data[at + length :]
            case "insert":
                data = data[:at] + draw(st.binary(max_size=16)) + data[at:]
            case "remove":
                data = data[:at] + data[at + length :]
            case "repeat":
                data = data[:at] + data[at : at + length] * 2 + data[at + length :]
            case "cut":
                data = data[:at]
            case "tokens":
                data = data[:at] + draw(st.sampled_from(TOKENS)) + data[at:]
    return data


@st.composite
def damaged_values(draw: st.DrawFn, data: bytes, form: Form) -> bytes:
    """Return the file with one to three of its values replaced, removed, renamed or doubled."""
    values = form.values(data)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(values))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "wrap", "swap"])):
            case "replace":
                holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            case "remove":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["", "a", "\ud800", key + key, key[1:]]))] = holder.pop(
                    key
                )
            case "swap":
                other, name = draw(st.sampled_from(places))
                holder[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else name)
            case _:
                holder[key] = [holder[key]]
    return form.file(values, data)


def _places(value: Any) -> Any:
    """Yield (list or table, index or key) of every value inside `value`."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys) if isinstance(value, dict | list) else []:
        yield value, key
        yield from _places(value[key]) if isinstance(value[key], dict | list) else ()


def as_json(values: Any, _: bytes = b"") -> bytes:
    return json.dumps(values).encode()


def _lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def _as_lines(values: list[Any], _: bytes) -> bytes:
    return b"".join(as_json(line) + b"\n" for line in values)


def _header(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _with_header(values: Any, data: bytes) -> bytes:
    rest, header = data[8 + int.from_bytes(data[:8], "little") :], as_json(values)
    return len(header).to_bytes(8, "little") + header + rest


def _members(data: bytes) -> dict[str, list[Any]]:
    """Return the members of a zip by name, the pickle cut into its operations."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: [archive.read(name)] for name in archive.namelist()}
    for name, (content,) in members.items():
        if name.endswith(".pkl"):
            starts = [at for _, _, at in pickletools.genops(content)]
            members[name] = [content[a:b] for a, b in pairwise([*starts, len(content)])]
    return members


def _as_zip(members: dict[str, Any], _: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, pieces in members.items():
            pieces = pieces if isinstance(pieces, list) else [pieces]
            archive.writestr(
                name.encode(errors="replace").decode() or "a",
                b"".join(x if isinstance(x, bytes) else repr(x).encode() for x in pieces),
            )
    return file.getvalue()


JSON = Form(json.loads, as_json)
JSON_LINES = Form(_lines, _as_lines)
TORCH = Form(_members, _as_zip)
SAFETENSORS = Form(_header, _with_header)
