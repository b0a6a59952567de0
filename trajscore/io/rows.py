"""The second pass of a selection: the kept rows' own columns, copied from the scored parts to one file.

It knows Parquet, JSON Lines and row numbers; not why a row was kept. Parts are read in batches, and only the columns
that are written, so memory holds a few batches whatever the corpus's size. Arrow types and field metadata pass through
unchanged, which is why pyarrow and not polars copies: the metadata says which columns hold JSON text.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.errors import DataError, TrajscoreError, UsageError
from trajscore.io.folders import remove_unfinished, unfinished_name
from trajscore.io.json_lines import children, is_marked, json_lines
from trajscore.io.parquet import open_pages
from trajscore.io.paths import for_arrow, local_path

ROW_SUFFIXES = (".parquet", ".jsonl")
_BATCH_ROWS = 1024
_GROUP_BYTES = 64 * 2**20


def check_suffix(path: str | Path, allowed: Sequence[str], flag: str) -> Path:
    """The path, if its suffix says a format that can be written.

    Raises:
        UsageError: it does not, or it is a URL.

    >>> check_suffix("kept.jsonl", ROW_SUFFIXES, "--out").name
    'kept.jsonl'
    """
    path = local_path(path, flag)
    if path.suffix not in allowed:
        raise UsageError(
            f"{flag} {path}: the suffix {path.suffix!r} names no format that can be written.",
            f"End the name in {' or '.join(allowed)}.",
        )
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends well and vanishes when it does not.

    Raises:
        TrajscoreError: the file cannot be written.
    """
    temporary = unfinished_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path)
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise TrajscoreError(
            f"{path}: cannot be written ({error.strerror or error}).", "Check the path, permissions and free space."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_rows(paths: Sequence[Path], columns: Sequence[str], kept: pl.DataFrame, metrics: pa.Schema, out: Path) -> int:
    """Copy kept rows to one file, in input order.

    Args:
        paths: the Parquet parts that hold the rows, in order.
        columns: names of the columns to copy; those that a part lacks are null there.
        kept: `row` (number over all parts, ascending) and one column per field of `metrics`.
        metrics: fields of the columns to add, with their metadata.
        out: a `.parquet` or `.jsonl` file; replaced whole, or not at all.

    Returns:
        The number of rows written.

    Raises:
        UsageError: parts hold a column in types that do not go together.
        DataError: a part is damaged, or JSON cannot hold a value.
        TrajscoreError: the file cannot be written.
    """
    schema = _output_schema(paths, columns)
    target = pa.schema([*schema, *metrics], metadata=metrics.metadata)
    batches = _kept_batches(paths, schema, kept, target)
    with replacing(out) as temporary:
        return _FORMATS[out.suffix](batches, target, temporary)


def _output_schema(paths: Sequence[Path], columns: Sequence[str]) -> pa.Schema:
    """Fields of the copied columns, in order: the same in all parts, or the type that holds them all."""
    fields: dict[str, pa.Field] = {}
    for path in paths:
        part = _read_schema(path)
        for name in columns:
            if name in part.names:
                fields[name] = _common(fields.get(name), _clean(part.field(name)), path)
    return pa.schema([fields[name] for name in columns if name in fields])


def _read_schema(path: Path) -> pa.Schema:
    try:
        with for_arrow(path) as source:
            return pq.read_schema(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: not readable ({error}).", "Delete it and run the same `trajscore score` command again."
        ) from error


def _clean(field: pa.Field) -> pa.Field:
    # Parquet numbers fields by position, which is another one in the new file.
    metadata = {key: value for key, value in (field.metadata or {}).items() if key != b"PARQUET:field_id"}
    return field.with_metadata(metadata or None)


def _common(first: pa.Field | None, second: pa.Field, path: Path) -> pa.Field:
    """A field that holds both. JSON text and plain text are the same type and must not become one column."""
    if first is None:
        return second
    before, now = _marks(first), _marks(second)
    try:
        merged = pa.unify_schemas([pa.schema([first]), pa.schema([second])], promote_options="permissive").field(0)
        merged = merged.with_metadata(first.metadata or second.metadata)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        merged = None
    if merged is None or any(_marks(merged).get(place) != mark for place, mark in (*before.items(), *now.items())):
        raise UsageError(
            f"{path}: column {second.name!r} ({second.type}) does not go with that of earlier parts ({first.type}).",
            "Select from these folders one by one.",
        )
    return merged


def _marks(field: pa.Field, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], bool]:
    """Whether each place in a field holds JSON text; places that are null throughout hold nothing."""
    here = {} if pa.types.is_null(field.type) else {place: is_marked(field)}
    for name, child in children(field):
        here |= _marks(child, (*place, name))
    return here


def _kept_batches(
    paths: Sequence[Path], schema: pa.Schema, kept: pl.DataFrame, target: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Kept rows in order, as batches of the target schema."""
    rows = kept["row"].to_numpy()
    for start, batch in _read_parts(paths, schema.names, rows):
        first, last = np.searchsorted(rows, [start, start + batch.num_rows])
        if first < last:
            taken = batch.take(pa.array(rows[first:last] - start))
            added = kept.slice(first, last - first)
            arrays = [_column(taken, field) for field in schema]
            arrays += [
                pa.array(added[name].to_numpy(), mask=added[name].is_null().to_numpy())
                for name in _added(target, schema)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=target)


def _added(target: pa.Schema, schema: pa.Schema) -> list[str]:
    return list(target.names[len(schema.names) :])


def _read_parts(
    paths: Sequence[Path], names: Sequence[str], rows: npt.NDArray[Any]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of the row groups that hold one of the rows, each with its first row's number; columns that a part has."""
    start = 0
    for path in paths:
        try:
            with for_arrow(path) as source, open_pages(source) as part:
                present = [name for name in names if name in part.schema_arrow.names]
                for group in range(part.num_row_groups):
                    end = start + part.metadata.row_group(group).num_rows
                    if np.searchsorted(rows, start) < np.searchsorted(rows, end):
                        for batch in part.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=present):
                            yield start, batch
                            start += batch.num_rows
                    start = end
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{path}: not readable ({error}).", "Delete it and run the same `trajscore score` command again."
            ) from error


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    column = batch.column(field.name)
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        # Structs that gained a key in another folder: no cast in Arrow, so through Python for this column only.
        return pa.array(column.to_pylist(), field.type)


def _write_parquet(batches: Iterator[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    rows = waiting_bytes = 0
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(path, schema, compression="zstd", version="2.6") as writer:
        for batch in batches:
            waiting.append(batch)
            rows += batch.num_rows
            waiting_bytes += batch.nbytes
            # A row group per batch would make thousands of tiny ones where few rows of each batch are kept.
            if waiting_bytes >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting, waiting_bytes = [], 0
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema))
    return rows


def _write_jsonl(batches: Iterator[pa.RecordBatch], _: pa.Schema, path: Path) -> int:
    rows = 0
    with path.open("wb") as handle:
        for batch in batches:
            handle.writelines(json_lines(batch))
            rows += batch.num_rows
    return rows


_FORMATS: dict[str, Callable[[Iterator[pa.RecordBatch], pa.Schema, Path], int]] = {
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
}
