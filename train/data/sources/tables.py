"""Parquet and arrow tables, with pictures in their cells or named by them.

They are read by pyarrow alone: `datasets` would run what a data set brings along. Of the metadata
that `datasets` leaves in a table, the names of its classes are read, as texts.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ic_jax.untrusted_files import open_regular, parse_json
from train.data.sources.entries import Entry, Part, Rejected, SetAside, SourceOptions
from train.data.sources.rows import KNOWN, NAMES, RowReader

TABLES = (".arrow", ".feather", ".parquet")
PICTURES = ("image", "picture", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
MASKS = ("mask", "mask_image")
# Those of pyarrow for damaged files are of these kinds.
ERRORS = (OSError, ValueError, LookupError, TypeError, NotImplementedError, OverflowError)
MAX_GROUP = 2**31  # bytes of a row group, whose pictures are read at once


def read_table(
    root: Path, table: str, options: SourceOptions, unknown: set[str]
) -> Iterator[Entry | Rejected]:
    """Read the rows of a table; their pictures are not read yet.

    Raises:
        DataError: no row names its character.
        ModuleNotFoundError: pyarrow is not installed.
    """
    reader, row, named = RowReader(root, table, options), -1, ""
    try:
        schema, batches = _open(root / table)
        picture, mask = _column(schema, PICTURES), _column(schema, MASKS)
        if not picture and not {*NAMES["file"]} & {*schema.names}:
            yield SetAside(table, "is a table that neither holds nor names pictures")
            return
        wanted = [name for name in schema.names if name in KNOWN | {options.character}]
        wanted = [name for name in wanted if name not in (picture, mask)]
        if picture and _only_names(root / table, picture):
            wanted, named, picture = [*wanted, picture], picture, ""
        others = dict.fromkeys(set(schema.names) - {*wanted, picture, mask})
        classes = _class_names(schema)
        for batch in batches(wanted):
            for fields in batch.to_pylist() if wanted else [{}] * batch.num_rows:
                row += 1
                cells = [("file", picture), ("mask", mask)]
                parts = {name: Part(table, column, row) for name, column in cells if column}
                try:
                    fields = _with_class_names(fields, classes)
                    if named:
                        fields["file"] = (fields.pop(named) or {}).get("path")
                    yield reader.entry(others | fields, f"{table}!{row}", parts)
                except ValueError as error:
                    yield Rejected(f"{table}!{row}", " ".join(str(error).split()))
    except ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        yield Rejected(table, f"is no table that can be read after row {row} ({reason})")
        return
    reader.check_named()
    unknown |= reader.unknown


def read_cell(path: Path, column: str, row: int) -> bytes:
    """Return the bytes of a cell's picture.

    Raises:
        ValueError: the table cannot be read, or the cell holds no picture.
    """
    try:
        first, cells = _cells(path, column, row, path.stat().st_mtime_ns)
        value = cells[row - first].as_py()
    except ERRORS as error:
        raise ValueError(f"cannot be read ({' '.join(str(error).split())[:200]})") from None
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ValueError("its cell holds no picture")
    return value


def _open(path: Path) -> tuple[Any, Any]:
    """Return the schema of a table, and a function that yields batches of some columns."""
    import pyarrow.parquet as pq

    open_regular(path).close()
    if path.suffix.lower() == ".parquet":
        file = pq.ParquetFile(path)
        return file.schema_arrow, lambda columns: file.iter_batches(1024, columns=columns)
    table = _arrow_table(path, path.stat().st_mtime_ns)

    def batches(columns: list[str]) -> Iterator[Any]:
        for batch in table.select(columns).to_batches(1024) if columns else table.to_batches(1024):
            batch.validate(full=True)  # a damaged offset would lead out of the file
            yield batch

    return table.schema, batches


@lru_cache(maxsize=4)
def _arrow_table(path: Path, _time: int) -> Any:
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    is_file = mapped.read(6) == b"ARROW1"
    mapped.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped).read_all()


@lru_cache(maxsize=2)
def _parquet_cells(path: Path, column: str, group: int, _time: int) -> Any:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    # Of all columns: pyarrow ends the process over the metadata of some that are damaged.
    size = file.metadata.row_group(group).total_byte_size
    if size > MAX_GROUP:
        raise ValueError(
            f"its row group has {size} bytes, more than {MAX_GROUP}; write the table with row "
            "groups of 100 rows"
        )
    return file.read_row_group(group, columns=[column])[column]


@lru_cache(maxsize=16)
def _group_ends(path: Path, _time: int) -> list[int]:
    import pyarrow.parquet as pq

    facts, ends = pq.ParquetFile(path).metadata, [0]
    for group in range(facts.num_row_groups):
        ends.append(ends[-1] + facts.row_group(group).num_rows)
    return ends


def _cells(path: Path, column: str, row: int, time: int) -> tuple[int, Any]:
    """Return cells of a column that include those of `row`, with the number of the first."""
    if path.suffix.lower() == ".parquet":
        ends = _group_ends(path, time)
        group = bisect_right(ends, row) - 1
        return ends[group], _parquet_cells(path, column, group, time)
    cell = _arrow_table(path, time)[column].slice(row, 1)
    cell.validate(full=True)
    return row, cell


def _column(schema: Any, names: tuple[str, ...]) -> str:
    """Return the first column of these names that holds bytes, "" if there is none."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            kind = next(
                (
                    kind.field(i).type
                    for i in range(kind.num_fields)
                    if kind.field(i).name == "bytes"
                ),
                None,
            )
        return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return next((n for n in names if n in schema.names and holds_bytes(schema.field(n).type)), "")


def _only_names(path: Path, column: str) -> bool:
    """Return whether the pictures of a column have no bytes; `datasets` then names their files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def has_none(table: Any) -> bool:
        cells, name = table.flatten(), f"{column}.bytes"
        return name in cells.column_names and cells[name].null_count == len(table)

    if path.suffix.lower() != ".parquet":
        return has_none(_arrow_table(path, path.stat().st_mtime_ns))
    file = pq.ParquetFile(path)
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    if not file.metadata.num_rows or any(group.total_byte_size > MAX_GROUP for group in groups):
        return False
    # Not by the columns' statistics: pyarrow ends the process over some that are damaged.
    batches = file.iter_batches(16, columns=[f"{column}.bytes"])
    return all(has_none(pa.Table.from_batches([batch])) for batch in batches)


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the classes of `datasets`' ClassLabel columns."""
    try:
        facts = parse_json((schema.metadata or {})[b"huggingface"], "huggingface")
        features = facts["info"]["features"].items()
        return {key: list(map(str, kind["names"])) for key, kind in features if "names" in kind}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _with_class_names(fields: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any]:
    for key, names in classes.items():
        number = fields.get(key)
        if isinstance(number, int) and not 0 <= number < len(names):
            raise ValueError(f"{key} is {number}; the table names {len(names)} classes")
        if isinstance(number, int):
            fields = fields | {key: names[number]}
    return fields
