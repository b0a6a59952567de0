"""Rows as Python values and as Arrow tables of one schema, and the JSON text that stands in where Arrow has no type."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from trajscore.corpus.identity import MAX_DEPTH, canonical_json
from trajscore.corpus.storable import first_half, nesting
from trajscore.errors import DataError
from trajscore.io.fields import converter, marks


def always_fits(dtype: pa.DataType) -> bool:
    """Whether Python has a counterpart of every value of a type; it has none of a date after the year 9999, for example."""
    is_ = pa.types
    if is_.is_struct(dtype):
        return all(always_fits(child.type) for child in dtype)
    if is_.is_list(dtype) or is_.is_large_list(dtype):
        return always_fits(dtype.value_type)
    plain = (is_.is_null, is_.is_boolean, is_.is_integer, is_.is_floating, is_.is_string, is_.is_large_string)
    return any(test(dtype) for test in plain)


def same_field(one: pa.Field, other: pa.Field) -> bool:
    """Whether two fields hold the same type, and JSON text in the same places."""
    return bool(one.type.equals(other.type)) and marks(one) == marks(other)


def table_from_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of that schema. Keys the schema does not name must have been ruled out before."""
    arrays = []
    for field in schema:
        arrays.append(_converted([row.get(field.name) for row in rows], field))
    return pa.Table.from_arrays(arrays, schema=schema) if arrays else pa.table({})


def check_stored(rows: Sequence[Mapping[str, Any]], table: pa.Table) -> None:
    """Makes sure that a table holds all that its rows hold, where the schema was not made from these rows.

    Raises:
        DataError: naming the first column that lost something.
    """
    for row, stored in zip(rows, decoded_rows(table), strict=True):
        for name, value in row.items():
            if canonical_json(value) != canonical_json(stored.get(name)):
                raise DataError(
                    f"Column {name!r} holds {canonical_json(value)[:80]}, for which the columns and types of the first rows "
                    "have no place.",
                    "Load without --streaming, so that all rows are seen first.",
                )


def fit_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns; missing ones are null, others converted value by value.

    Raises:
        DataError: if a value does not fit, or the table has a column that the schema has not.
    """
    unknown = [name for name in table.column_names if name not in schema.names]
    if unknown:
        raise DataError(f"Column {unknown[0]!r} is new; the first rows did not have it.", "Load without --streaming.")
    columns = []
    for field in schema:
        index = table.schema.get_field_index(field.name)
        if index < 0:
            columns.append(pa.nulls(table.num_rows, field.type))
        elif same_field(table.schema.field(index), field):
            columns.append(table.column(index))
        else:
            columns.append(_converted(_values(table, index), field))
    return pa.Table.from_arrays(columns, schema=schema)


def _converted(values: list[Any], field: pa.Field) -> pa.Array:
    encode = converter(field, _dumps)
    try:
        return pa.array([encode(value) for value in values] if encode else values, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"Column {field.name!r} is {field.type} in earlier rows; a later value does not fit: {error}",
            "Give the column one type in all files.",
        ) from None


def decoded_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The table's rows as Python values, JSON text of marked fields parsed: the rows as they were read.

    Keys that a row never had come back as None.

    Raises:
        DataError: if a column's values have no Python counterpart (a date after the year 9999).
    """
    columns = {name: _values(table, index) for index, name in enumerate(table.column_names)}
    if not columns:
        return [{} for _ in range(table.num_rows)]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def rows_as_written(table: pa.Table) -> list[dict[str, Any]]:
    """Like `decoded_rows`, without the null keys that a struct gives to objects which never had them.

    A null that was written into a struct goes too: it cannot be told from a key that was missing.
    """
    rows = decoded_rows(table)
    cleaners = {field.name: converter(field, struct=_without_nulls) for field in table.schema}
    return [{name: clean(value) if (clean := cleaners[name]) else value for name, value in row.items()} for row in rows]


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _values(table: pa.Table, index: int) -> list[Any]:
    field = table.schema.field(index)
    try:
        values: list[Any] = table.column(index).to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, ImportError) as error:
        raise DataError(
            f"Column {field.name!r} ({field.type}) has a value that Python cannot hold: {error}",
            "Cast the column to a string, or drop it.",
        ) from None
    decode = converter(field, _loads)
    return [decode(value) for value in values] if decode else values


def _dumps(value: Any) -> Any:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _loads(value: Any) -> Any:
    if value is None:
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    # We would not have written such a value: the mark came with somebody else's file and means something else there.
    return value if nesting(parsed) > MAX_DEPTH or first_half(parsed) else parsed
