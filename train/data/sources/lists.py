"""Lists of pictures: JSON lines, JSON and CSV."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ic_jax.text_files import lines_of, read_text
from train.data.sources.entries import Entry, Rejected, SourceOptions
from train.data.sources.rows import NAMES, RowReader

LISTS = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")
LIMIT = 2**34  # bytes: eighty million lines
Row = tuple[str, Any]  # where it stands, and its fields, or the ValueError that it gave


def read_list(
    root: Path, listing: str, options: SourceOptions, unknown: set[str]
) -> Iterator[Entry | Rejected]:
    """Read the pictures that the file `listing` names; the keys of no field go to `unknown`.

    Raises:
        DataError: no row names its character.
    """
    path, reader = root / listing, RowReader(root, listing, options)
    suffix = path.suffix.lower()
    try:
        # What is not UTF-8 in one line does not reject the others.
        text = read_text(path, errors="surrogateescape", limit=LIMIT)
    except (OSError, ValueError) as error:
        yield Rejected(listing, " ".join(str(error).split()))
        return
    rows = _csv(text, suffix) if suffix in (".csv", ".tsv") else None
    if rows is None:
        rows = _json(text) if suffix == ".json" else _json_lines(text)
    for where, fields in rows:
        try:
            if isinstance(fields, ValueError):
                raise fields
            yield reader.entry(fields)
        except ValueError as error:
            yield Rejected(f"{path.name} {where}", " ".join(str(error).split()))
    reader.check_named()
    unknown |= reader.unknown


def _json_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(lines_of(text), 1):
        if line.strip():
            yield f"line {number}", _parsed(line)


def _json(text: str) -> Iterator[Row]:
    """Yield the items of an array, of an object by file names, or of pandas' object by columns.

    `datasets` and `pandas` also call JSON lines .json.
    """
    whole = _parsed(text)
    if isinstance(whole, ValueError):
        yield from _json_lines(text)
    elif isinstance(whole, list):
        yield from ((f"item {number}", item) for number, item in enumerate(whole, 1))
    elif isinstance(whole, dict) and not whole.keys().isdisjoint(NAMES["file"]):
        columns = {k: v if isinstance(v, dict) else {"0": v} for k, v in whole.items()}
        rows = dict.fromkeys(row for column in columns.values() for row in column)
        for row in rows:
            yield f"row {row}", {k: column.get(row) for k, column in columns.items()}
    elif isinstance(whole, dict):
        for file, fields in whole.items():
            fields = {"caption": fields} if isinstance(fields, str) else fields
            yield f"item {file!r}", {"file": file} | fields if isinstance(fields, dict) else fields
    else:
        yield "item 1", whole


def _parsed(text: str) -> Any:
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        return ValueError("is not UTF-8; save the file as UTF-8")
    try:
        return json.loads(text)
    except RecursionError:
        return ValueError("is nested too deep")
    except ValueError as error:
        return error


def _csv(text: str, suffix: str) -> Iterator[Row]:
    """Yield the rows below the header, separated as the header is."""
    header = text[: text.find("\n")] if "\n" in text else text
    marks = "\t" if suffix == ".tsv" else max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=marks)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:  # an open quote, or a field of more than 128 kB
            yield f"line {reader.line_num}", ValueError(str(error))
            return
        if row is None:
            return
        where = f"line {reader.line_num}"
        extra = row.pop(None, None)
        if extra:
            yield where, ValueError(f"has {len(extra)} fields more than the header; quote commas")
        elif any("\udc80" <= c <= "\udcff" for value in row.values() for c in value or ""):
            yield where, ValueError("is not UTF-8; save the file as UTF-8")
        else:
            # An unnamed column is the number of the row, as pandas writes it.
            yield where, {key.strip(): value for key, value in row.items() if key}
