"""Arrow rows as JSON Lines. It knows Arrow types and the `encoding: json` mark on fields; no files and no corpus.

A marked field holds JSON text, at any depth, and is written as the JSON that it is. Null-valued keys inside a value go:
they come from Parquet, which gives every struct the keys of all rows' structs. Top-level nulls, nulls in lists and
maps, a message's null content, and whatever is stored as JSON text (the arguments of tool calls, say) stay.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pyarrow as pa

from trajscore.errors import DataError

Converter = Callable[[Any], Any]


def is_marked(field: pa.Field) -> bool:
    """Whether a field says that its strings are JSON text."""
    return (field.metadata or {}).get(b"encoding") == b"json"


def children(field: pa.Field) -> list[tuple[str, pa.Field]]:
    """The fields inside a field, with a name for the way there; none for a plain value."""
    kind = field.type
    if pa.types.is_struct(kind):
        return [(child.name, child) for child in kind]
    if pa.types.is_map(kind):
        return [("{}", kind.item_field)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [("[]", kind.value_field)]
    return []


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
    convert = _converter(field)
    return values if convert is None else [convert(value) for value in values]


def _converter(field: pa.Field) -> Converter | None:
    """What makes a value of this field ready for JSON, None where it is ready as it is."""
    if is_marked(field):
        return _json_text
    inner = {name: _converter(child) for name, child in children(field)}
    if pa.types.is_struct(field.type):
        return lambda value: None if value is None else _without_nulls(value, inner)
    if pa.types.is_map(field.type):
        item = inner["{}"] or _same
        return lambda value: None if value is None else {str(key): item(each) for key, each in value}
    each = inner.get("[]")
    if each is None:
        return None
    return lambda value: None if value is None else [each(item) for item in value]


def _same(value: Any) -> Any:
    return value


def _without_nulls(value: dict[str, Any], inner: dict[str, Converter | None]) -> dict[str, Any]:
    # A message without content keeps it: those who read it ask for the key.
    kept = {"content"} if "role" in value else set()
    return {key: (inner[key] or _same)(item) for key, item in value.items() if item is not None or key in kept}


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
