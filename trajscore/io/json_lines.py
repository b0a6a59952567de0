"""Arrow rows as JSON Lines.

A field that is marked as JSON text is written as the JSON that it is, at any depth. Null-valued keys inside a value go:
they come from Parquet, which gives every struct the keys of all rows' structs. Top-level nulls, nulls in lists and
maps, a message's null content, and whatever is stored as JSON text (the arguments of tool calls, say) stay.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa

from trajscore.errors import DataError
from trajscore.io.fields import converter


def json_lines(batch: pa.RecordBatch) -> Iterator[bytes]:
    """One line per row, columns in order, each ending in a line feed.

    Raises:
        DataError: a value that Python cannot hold, such as a date after the year 9999.

    >>> fields = [pa.field("id", pa.string()), pa.field("x", pa.string(), metadata={"encoding": "json"})]
    >>> batch = pa.RecordBatch.from_pylist([{"id": None, "x": '{"a": null}'}], schema=pa.schema(fields))
    >>> list(json_lines(batch))
    [b'{"id":null,"x":{"a": null}}\\n']
    """
    columns = {field.name: _column(column, field) for field, column in zip(batch.schema, batch.columns, strict=True)}
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        yield orjson.dumps(row, default=_as_text, option=orjson.OPT_APPEND_NEWLINE)


def _column(column: pa.Array, field: pa.Field) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(
            f"column {field.name!r} ({field.type}) holds a value that JSON cannot ({error}).", "Write .parquet instead."
        ) from error
    convert = converter(field, _json_text, struct=_without_nulls, pairs=_with_text_keys)
    return values if convert is None else [convert(value) for value in values]


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    # A message without content keeps it: those who read it ask for the key.
    kept = {"content"} if "role" in value else set()
    return {key: item for key, item in value.items() if item is not None or key in kept}


def _with_text_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    return {str(key): each for key, each in pairs}


def _json_text(text: str | None) -> Any:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        # The mark came with somebody else's file and means something else there: the text is the value.
        return text
    # As it stands, so that long integers keep their digits; a line break would end the line of JSON Lines.
    return orjson.Fragment(json.dumps(value, ensure_ascii=False) if "\n" in text or "\r" in text else text)


def _as_text(value: Any) -> str:
    """What JSON has no type for: bytes as base64, the rest (decimals, durations) as its text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
