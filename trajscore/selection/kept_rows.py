"""The kept rows' own columns, copied from the scored parts into one file: the second pass of `select`.

Parts are read in batches, and only the columns that are written, so memory holds a few batches whatever the corpus's size.
Arrow types and field metadata pass through unchanged, which is why pyarrow and not polars copies: the metadata says which
columns hold JSON text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.errors import DataError, UsageError
from trajscore.io.atomic import replacing
from trajscore.io.fields import marks, under_own_names
from trajscore.io.json_lines import json_lines
from trajscore.io.parquet import open_pages, write_batches
from trajscore.io.paths import for_arrow

_BATCH_ROWS = 1024


class Rewrite(Protocol):
    """What is made of the copied columns before they are written."""

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema afterwards."""

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows afterwards."""


def read_kept(paths: Sequence[Path], columns: Sequence[str], kept: pl.DataFrame) -> Iterator[pa.RecordBatch]:
    """Columns of kept rows, in input order; `kept` as for `write_rows`."""
    schema = _output_schema(paths, columns)
    return _kept_batches(paths, schema, kept.select("row"), None)


def write_rows(
    paths: Sequence[Path],
    columns: Sequence[str],
    kept: pl.DataFrame,
    metrics: pa.Schema,
    out: Path,
    rewrite: Rewrite | None = None,
) -> int:
    """Copy kept rows to one file, in input order.

    Args:
        paths: the Parquet parts that hold the rows, in order.
        columns: names of the columns to copy; those that a part lacks are null there.
        kept: `row` (number over all parts, ascending) and one column per field of `metrics`.
        metrics: fields of the columns to add, with their metadata.
        out: a `.parquet` or `.jsonl` file; replaced whole, or not at all.
        rewrite: makes the copied columns into others.

    Returns:
        The number of rows written.

    Raises:
        UsageError: parts hold a column in types that do not go together.
        DataError: a part is damaged, or JSON cannot hold a value.
        TrajscoreError: the file cannot be written.
    """
    schema = _output_schema(paths, columns)
    copied = rewrite.schema(schema) if rewrite else schema
    target = under_own_names(pa.schema([*copied, *metrics], metadata=metrics.metadata))
    batches = _with_metrics(_kept_batches(paths, schema, kept, rewrite), kept, target)
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
    before, now = marks(first), marks(second)
    try:
        merged = pa.unify_schemas([pa.schema([first]), pa.schema([second])], promote_options="permissive").field(0)
        merged = merged.with_metadata(first.metadata or second.metadata)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        merged = None
    if merged is None or any(marks(merged).get(place) != mark for place, mark in (*before.items(), *now.items())):
        raise UsageError(
            f"{path}: column {second.name!r} ({second.type}) does not go with that of earlier parts ({first.type}).",
            "Select from these folders one by one.",
        )
    return merged


def _kept_batches(
    paths: Sequence[Path], schema: pa.Schema, kept: pl.DataFrame, rewrite: Rewrite | None
) -> Iterator[pa.RecordBatch]:
    """Copied columns of kept rows in order."""
    rows = kept["row"].to_numpy()
    for start, batch in _read_parts(paths, schema.names, rows):
        first, last = np.searchsorted(rows, [start, start + batch.num_rows])
        if first < last:
            taken = batch.take(pa.array(rows[first:last] - start))
            copied = pa.RecordBatch.from_arrays([_column(taken, field) for field in schema], schema=schema)
            yield rewrite.batch(copied) if rewrite else copied


def _with_metrics(batches: Iterator[pa.RecordBatch], kept: pl.DataFrame, target: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches with the kept rows' metrics after their own columns."""
    first = 0
    for batch in batches:
        added = kept.slice(first, batch.num_rows)
        first += batch.num_rows
        names = target.names[batch.num_columns :]
        metrics = [pa.array(added[name].to_numpy(), mask=added[name].is_null().to_numpy()) for name in names]
        yield pa.RecordBatch.from_arrays([*batch.columns, *metrics], schema=target)


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


def _write_jsonl(batches: Iterable[pa.RecordBatch], _: pa.Schema, path: Path) -> int:
    rows = 0
    with path.open("wb") as handle:
        for batch in batches:
            handle.writelines(json_lines(batch))
            rows += batch.num_rows
    return rows


_FORMATS: dict[str, Callable[[Iterable[pa.RecordBatch], pa.Schema, Path], int]] = {
    ".parquet": write_batches,
    ".jsonl": _write_jsonl,
}
