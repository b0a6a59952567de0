"""Values that no UTF-8 file can hold, or no parser can walk -> what is kept of them, and a sentence about what was not.

They come as JSON text, Python values or Arrow arrays. A row with such a value stays in the corpus: U+FFFD stands in
for half of a surrogate pair and for bytes that are not UTF-8, null for a value that is nested too deeply and for a
number with more digits than Python reads. The sentence is why that row is not scored.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from trajscore.corpus.identity import MAX_DEPTH
from trajscore.rendering.literals import strings

_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")
# Possessive, so that a string without an end is passed over once; its quote then matches alone.
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)


class ExactDecoder:
    """JSON text -> values with every digit, and what of them cannot be stored."""

    def __init__(self) -> None:
        self._json = json.JSONDecoder(parse_int=self._whole_number)
        self._faults: list[str] = []

    def decode(self, text: str, start: int = 0) -> tuple[Any, str, int]:
        """The value that begins at an offset, as it can be stored; what is wrong with it, if anything; where it ends.

        Raises:
            json.JSONDecodeError: if the text is not JSON, or ends inside the value.
        """
        self._faults = []
        try:
            value, end = self._json.raw_decode(text, start)
            deep = nesting(value) > MAX_DEPTH
        except RecursionError:
            deep = True
        if deep:
            value, end = self._shallow(text, start)
        # A pair of escapes is one character by now; only a half is left as one.
        if _ESCAPED_HALF.search(text, start, end) and (half := first_half(value)):
            self._faults.append(_about_half(half))
            value = _without_halves(value)
        return value, " ".join(self._faults), end

    def _whole_number(self, digits: str) -> int | None:
        try:
            return int(digits)
        except ValueError:
            self._faults.append(f"A number has more than {sys.get_int_max_str_digits()} digits; it is null here.")
            return None

    def _shallow(self, text: str, start: int) -> tuple[Any, int]:
        shallow, keys, end = _without_deep_values(text, start)
        try:
            value = self._json.decode(shallow)
            self._faults += [_too_deep(json.loads(key)) for key in keys]
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, text, start) from None
        return value, end


def mended(row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A row of Python values as it can be stored, and what is wrong with it; the same values and "" where nothing is.

    >>> mended({"a": "x\\ud800", "b": 1})[0] == {"a": "x\\ufffd", "b": 1}
    True
    """
    deep = [name for name, value in row.items() if nesting(value) >= MAX_DEPTH]
    kept = {name: None if name in deep else value for name, value in row.items()}
    faults = [_too_deep(name) for name in deep]
    if half := first_half(kept):
        faults.append(_about_half(half))
        kept = _without_halves(kept)
    return kept, " ".join(faults)


def nesting(value: Any) -> int:
    """How many lists and objects lie inside one another: 0 for a plain value.

    >>> nesting([{"a": []}]), nesting("x")
    (3, 0)
    """
    depth, level = 0, [value]
    while True:
        level = [item for item in level if isinstance(item, dict | list | tuple)]
        if not level:
            return depth
        depth += 1
        level = [item for holder in level for item in (holder.values() if isinstance(holder, dict) else holder)]


def first_half(value: Any) -> str:
    """The first half of a surrogate pair in any string of a value, as an escape; empty where there is none."""
    found = next((match[0] for string in strings(value) if (match := _HALF.search(string))), "")
    return f"\\u{ord(found):04x}" if found else ""


def plain_type(dtype: pa.DataType) -> pa.DataType:
    """The type in which a column of a type is kept: one that Parquet, polars, pandas and `datasets` all read.

    Views become lists and strings, 256-bit decimals 128-bit ones (or text beyond 38 digits), extension types what they store,
    run-end and dictionary encodings of anything but text their values, half floats floats. Maps stay maps, so that JSON has
    them as objects; `datasets` alone reads none.

    Raises:
        pyarrow.ArrowInvalid: there is no such type.

    >>> str(plain_type(pa.list_view(pa.string_view()))), str(plain_type(pa.decimal256(50, 2)))
    ('list<item: string>', 'string')
    """
    is_ = pa.types
    if isinstance(dtype, pa.BaseExtensionType):
        return plain_type(dtype.storage_type)
    if is_.is_run_end_encoded(dtype):
        return plain_type(dtype.value_type)
    if is_.is_dictionary(dtype):
        text = is_.is_string(dtype.value_type) or is_.is_large_string(dtype.value_type)
        return dtype if text else plain_type(dtype.value_type)
    if is_.is_string_view(dtype):
        return pa.string()
    if is_.is_binary_view(dtype):
        return pa.binary()
    if is_.is_decimal256(dtype):
        return pa.decimal128(dtype.precision, dtype.scale) if dtype.precision <= 38 else pa.string()
    if is_.is_decimal(dtype) and not is_.is_decimal128(dtype):
        return pa.decimal128(dtype.precision, dtype.scale)
    if is_.is_float16(dtype):
        return pa.float32()
    if is_.is_struct(dtype):
        return pa.struct([child.with_type(plain_type(child.type)) for child in dtype])
    if is_.is_map(dtype):
        return pa.map_(plain_type(dtype.key_type), dtype.item_field.with_type(plain_type(dtype.item_type)))
    if is_.is_fixed_size_list(dtype):
        return pa.list_(dtype.value_field.with_type(plain_type(dtype.value_type)), dtype.list_size)
    if is_.is_list(dtype) or is_.is_list_view(dtype):
        return pa.list_(dtype.value_field.with_type(plain_type(dtype.value_type)))
    if is_.is_large_list(dtype) or is_.is_large_list_view(dtype):
        return pa.large_list(dtype.value_field.with_type(plain_type(dtype.value_type)))
    if is_.is_union(dtype) or is_.is_interval(dtype):
        raise pa.ArrowInvalid(
            f"the type {dtype} has no place in a Parquet file that others read; cast the column to another"
        )
    return dtype


def _plain(table: pa.Table) -> pa.Table:
    """The table with columns of plain types only."""
    for index, field in enumerate(table.schema):
        dtype = plain_type(field.type)
        if dtype != field.type:
            column = table.column(index)
            try:
                # Arrow's own cast of list views leaves offsets that are too short.
                column = column.cast(dtype) if "list_view" not in str(field.type) else _by_value(column, dtype)
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError):
                column = _by_value(column, dtype)
            table = table.set_column(index, field.with_type(dtype), column)
    return table


def _by_value(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    values = column.to_pylist()
    if pa.types.is_string(dtype):
        values = [None if value is None else str(value) for value in values]
    return pa.chunked_array([pa.array(values, dtype)], dtype)


def readable(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """A table whose strings are UTF-8, and what is wrong with rows (by number in the table) in which they were not.

    Careless writers of Parquet store any bytes as strings, and no reader looks at them before it has to.

    Raises:
        pyarrow.ArrowException: a column is damaged otherwise, or of a type in which strings cannot be mended.
    """
    faults: dict[int, list[str]] = {}
    table = _plain(table)
    for index, field in enumerate(table.schema):
        column = table.column(index)
        column.validate()
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            mender = _Mender(field)
            values, wrong = mender.mended(column)
            table = table.set_column(index, field, pa.array(values, field.type))
            for number in wrong:
                fault = f"Column {field.name!r} holds bytes that are not UTF-8; U+FFFD stands in their place."
                faults.setdefault(number, []).append(fault)
    return table, {number: " ".join(sentences) for number, sentences in faults.items()}


class _Mender:
    """Bytes that a column claims to be strings -> strings."""

    def __init__(self, field: pa.Field) -> None:
        self._field = field
        self._faulty = False

    def mended(self, column: pa.ChunkedArray) -> tuple[list[Any], list[int]]:
        """The column's values, and the numbers of those that were mended."""
        values, wrong = [], []
        try:
            raw = column.cast(_as_bytes(self._field.type)).to_pylist()
        except UnicodeDecodeError as error:
            raise pa.ArrowInvalid(f"column {self._field.name!r} ({self._field.type}): {error}") from None
        for number, value in enumerate(raw):
            self._faulty = False
            values.append(self._text(value, self._field.type))
            if self._faulty:
                wrong.append(number)
        return values, wrong

    def _text(self, value: Any, dtype: pa.DataType) -> Any:
        if value is None:
            return None
        if _is_text(dtype):
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError:
                self._faulty = True
                return value.decode("utf-8", "replace")
        if pa.types.is_struct(dtype):
            return {child.name: self._text(value[child.name], child.type) for child in dtype}
        if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
            return [self._text(item, dtype.value_type) for item in value]
        return value


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def _as_bytes(dtype: pa.DataType) -> pa.DataType:
    """The type with bytes wherever it has strings, as far as `_Mender` walks it."""
    if _is_text(dtype):
        return pa.binary() if pa.types.is_string(dtype) else pa.large_binary()
    if pa.types.is_struct(dtype):
        return pa.struct([child.with_type(_as_bytes(child.type)) for child in dtype])
    if pa.types.is_list(dtype):
        return pa.list_(dtype.value_field.with_type(_as_bytes(dtype.value_type)))
    if pa.types.is_large_list(dtype):
        return pa.large_list(dtype.value_field.with_type(_as_bytes(dtype.value_type)))
    return dtype


def _without_deep_values(text: str, start: int) -> tuple[str, list[str], int]:
    """A list or object with null for each of its values that goes deeper than `MAX_DEPTH`; their keys as JSON; its end."""
    kept, keys = list[str](), list[str]()
    copied = opened = start
    depth = reached = 0
    string = key = '""'
    for match in _STRUCTURE.finditer(text, start):
        mark = match[0]
        if mark in "[{":
            depth += 1
            if depth == 2:
                opened, reached, key = match.start(), 2, string
            reached = max(reached, depth)
        elif mark in "]}":
            depth -= 1
            if depth == 1 and reached > MAX_DEPTH:
                kept += [text[copied:opened], "null"]
                keys.append(key)
                copied, reached = match.end(), 0
            elif depth < 1:
                return "".join([*kept, text[copied : match.end()]]), keys, match.end()
        elif mark == '"':
            break
        elif depth == 1:
            string = mark
    raise json.JSONDecodeError("Unterminated value", text, start)


def _too_deep(name: str) -> str:
    return f"Column {name!r} is nested deeper than {MAX_DEPTH} levels; it is null here."


def _about_half(half: str) -> str:
    return (
        f"A string holds {half}, half of a surrogate pair, which no UTF-8 file can store; U+FFFD stands in its place."
    )


def _without_halves(value: Any) -> Any:
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_halves(item) for item in value]
    return value
