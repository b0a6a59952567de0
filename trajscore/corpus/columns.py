"""One Arrow schema for rows that never agreed on one, and the way there and back. It knows values and types, no file.

A JSON value keeps its Arrow type where all rows agree (null and anything; whole numbers and fractions if no whole
number loses a digit; objects with different keys). Where they do not, or where Parquet has no such type, the
innermost named field is stored as JSON text and marked with the field metadata `encoding: json`; `decoded_rows` gives
the values back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajscore.corpus.identity import EXACT_INT, canonical_json
from trajscore.errors import DataError

logger = logging.getLogger("trajscore")

MAX_KEYS = 64
"""An object with more different keys is a mapping, not a record: as a struct, each row would carry the keys of all."""

MAX_COLUMNS = 1000
"""Top-level keys of all rows together; more are a mapping that was spread over the row."""

MAX_NESTING = 16
"""Levels of Arrow nesting; Parquet readers stop at about 50, so deeper values are stored as JSON text."""

_JSON = {b"encoding": b"json"}
_FIELD_ID = b"PARQUET:field_id"

_BOOL, _INT, _FLOAT, _TEXT, _OBJECT, _LIST, _OTHER, _HUGE, _MANY, _ENCODED, _FOREIGN = (1 << i for i in range(11))
_NAMES = {
    _BOOL: "true/false",
    _INT: "whole number",
    _FLOAT: "fraction",
    _TEXT: "string",
    _OBJECT: "object",
    _LIST: "list",
    _HUGE: "whole number beyond 64 bits",
    _MANY: f"more than {MAX_KEYS} different keys",
    _ENCODED: "JSON text",
    _FOREIGN: "a Python object",
}
_KINDS: dict[type, int] = {bool: _BOOL, int: _INT, float: _FLOAT, str: _TEXT, dict: _OBJECT, list: _LIST}


class Shape:
    """What was seen in one place of the rows: kinds of value, the largest whole number, keys and list items."""

    __slots__ = ("big", "fields", "items", "kinds", "others")

    def __init__(self) -> None:
        self.kinds = 0
        self.big = 0
        self.fields: dict[str, Shape] = {}
        self.items: Shape | None = None
        self.others: list[pa.DataType] = []

    def observe(self, value: Any) -> None:
        """Takes in one JSON value; null says nothing."""
        if value is None:
            return
        kind = _KINDS.get(type(value), _FOREIGN)
        self.kinds |= kind
        if kind == _INT:
            self._magnitude(value, value)
        elif kind == _OBJECT:
            for key, item in value.items():
                child = self.child(key)
                if child is not None:
                    child.observe(item)
        elif kind == _LIST:
            self._observe_list(value)

    def _observe_list(self, values: list[Any]) -> None:
        items = self.item()
        kinds = set(map(type, values))
        if kinds <= {str, float}:
            # Ten thousand log-probabilities of one row are looked at once, not one by one.
            for kind in kinds:
                items.kinds |= _KINDS[kind]
            return
        for value in values:
            items.observe(value)

    def _magnitude(self, low: int, high: int) -> None:
        if low < -(2**63) or high >= 2**63:
            self.kinds |= _HUGE
        self.big = max(self.big, -low, high)

    def child(self, key: str) -> Shape | None:
        """The shape under a key; None once there are too many keys to keep."""
        child = self.fields.get(key)
        if child is None and not self.kinds & _MANY:
            if len(self.fields) == MAX_KEYS:
                self.kinds |= _MANY
                self.fields.clear()
                return None
            child = self.fields[key] = Shape()
        return child

    def item(self) -> Shape:
        """The shape of the list's items."""
        self.items = self.items or Shape()
        return self.items

    def observe_arrow(self, array: pa.Array, field: pa.Field) -> None:
        """Takes in a whole Arrow array; one that holds only nulls says nothing, whatever its type."""
        if array.null_count == len(array):
            return
        kind = self._arrow_kind(array.type, field)
        self.kinds |= kind
        if kind == _INT:
            bounds = pc.min_max(array).as_py()
            self._magnitude(bounds["min"], bounds["max"])
        elif kind == _OBJECT:
            for i in range(array.type.num_fields):
                child = self.child(array.type.field(i).name)
                if child is not None:
                    child.observe_arrow(pc.struct_field(array, [i]), array.type.field(i))
        elif kind == _LIST:
            self.item().observe_arrow(pc.list_flatten(array), array.type.value_field)
        elif kind == _OTHER and array.type not in self.others:
            self.others.append(array.type)

    def _arrow_kind(self, dtype: pa.DataType, field: pa.Field) -> int:
        is_ = pa.types
        if is_encoded(field):
            return _ENCODED
        if is_.is_dictionary(dtype) and is_.is_string(dtype.value_type):
            return _TEXT
        tests = (
            (is_.is_boolean, _BOOL),
            (is_.is_integer, _INT),
            (is_.is_floating, _FLOAT),
            (is_.is_string, _TEXT),
            (is_.is_large_string, _TEXT),
            (is_.is_struct, _OBJECT),
            (is_.is_list, _LIST),
            (is_.is_large_list, _LIST),
        )
        return next((kind for test, kind in tests if test(dtype)), _OTHER)

    def conflict(self) -> str:
        """Why this place has no Arrow type of its own; empty when it has one."""
        kinds = self.kinds
        if kinds == _INT | _FLOAT and self.big > EXACT_INT:
            return f"fractions and whole numbers beyond 2^53 ({self.big})"
        if kinds & (_HUGE | _MANY):
            return _NAMES[_HUGE if kinds & _HUGE else _MANY]
        if kinds == _OBJECT and not self.fields:
            return "only empty objects"
        mixed = kinds.bit_count() > 1 and kinds != _INT | _FLOAT
        if mixed or kinds & (_ENCODED | _FOREIGN) or len(self.others) > 1:
            names = [_NAMES[kind] for kind in _NAMES if kinds & kind]
            return " and ".join([*names, *map(str, self.others)])
        return ""

    def arrow_type(self, path: str, depth: int = 0) -> pa.DataType | None:
        """The Arrow type of this place; None if the field that holds it has to be JSON text.

        Raises nothing; fields below that become JSON text are logged under their `path`.
        """
        if depth > MAX_NESTING or self.conflict():
            return None
        if self.kinds & _OBJECT:
            return pa.struct([shape.field(name, f"{path}.{name}", depth + 1) for name, shape in self.fields.items()])
        if self.kinds & _LIST:
            inner = self.item().arrow_type(f"{path}[]", depth + 1)
            return None if inner is None else pa.list_(inner)
        if self.kinds & _OTHER:
            return self.others[0]
        if self.kinds & _FLOAT:
            return pa.float64()
        return {0: pa.null(), _BOOL: pa.bool_(), _INT: pa.int64(), _TEXT: pa.string()}[self.kinds]

    def field(self, name: str, path: str, depth: int = 0) -> pa.Field:
        """The Arrow field of this place: of its own type, or JSON text (logged)."""
        dtype = self.arrow_type(path, depth)
        if dtype is not None:
            return pa.field(name, dtype)
        reason = self.conflict() or self._reason_below(path)
        logger.warning("column %s is stored as JSON text: its values are %s", path, reason)
        return pa.field(name, pa.string(), metadata=_JSON)

    def _reason_below(self, path: str) -> str:
        items = self.items
        while items is not None:
            if items.conflict():
                return f"lists of {items.conflict()}"
            items = items.items
        return f"nested deeper than {MAX_NESTING} levels"


class SchemaSurvey:
    """Collects what the rows of all files hold, then names one schema for them.

    A column that comes only from Arrow sources, always with the same type, keeps that very type (dates, dictionaries,
    ...).
    """

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self._exact: dict[str, list[pa.Field]] = {}
        self._from_json: set[str] = set()

    def _shape(self, name: str) -> Shape:
        shape = self.shapes.get(name)
        if shape is None:
            if len(self.shapes) == MAX_COLUMNS:
                raise DataError(
                    f"The rows have more than {MAX_COLUMNS} different columns; the latest is {name!r}.",
                    "Move keys that vary from row to row into one nested column.",
                )
            shape = self.shapes[name] = Shape()
        return shape

    def observe(self, rows: list[dict[str, Any]] | pa.Table) -> None:
        """Takes in parsed rows or a table."""
        if isinstance(rows, list):
            self._observe_rows(rows)
        else:
            self._observe_table(rows)

    def _observe_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            for name, value in row.items():
                self._shape(name).observe(value)
                if value is not None:
                    self._from_json.add(name)

    def _observe_table(self, table: pa.Table) -> None:
        for field, column in zip(table.schema, table.columns, strict=True):
            shape = self._shape(field.name)
            exact = self._exact.setdefault(field.name, [])
            if not any(_same(field, other) for other in exact):
                exact.append(field)
            for array in column.chunks:
                shape.observe_arrow(array, field)

    def has_values(self, name: str) -> bool:
        """Whether any row has a value that is not null in this column."""
        return name in self.shapes and self.shapes[name].kinds != 0

    def schema(self) -> pa.Schema:
        """One schema for all rows, columns in order of first appearance; logs what becomes JSON text."""
        return pa.schema([self._field(name, shape) for name, shape in self.shapes.items()])

    def _field(self, name: str, shape: Shape) -> pa.Field:
        exact = self._exact.get(name, [])
        if len(exact) != 1 or name in self._from_json:
            return shape.field(name, name)
        metadata = {k: v for k, v in (exact[0].metadata or {}).items() if k != _FIELD_ID}
        return pa.field(name, exact[0].type, metadata=metadata or None)


def is_encoded(field: pa.Field) -> bool:
    """Whether the field holds JSON text in place of the values themselves."""
    return (field.metadata or {}).get(b"encoding") == b"json"


def _same(one: pa.Field, other: pa.Field) -> bool:
    return bool(one.type.equals(other.type)) and _encoded_paths(one) == _encoded_paths(other)


def _encoded_paths(field: pa.Field) -> list[str]:
    """Where in a field JSON text is stored; types compare equal without regard to it."""
    if is_encoded(field):
        return [""]
    children: list[pa.Field] = []
    if pa.types.is_struct(field.type):
        children = list(field.type)
    elif pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
        children = [field.type.value_field]
    return [f"{i}.{path}" for i, child in enumerate(children) for path in _encoded_paths(child)]


def table_from_rows(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of that schema. Keys the schema does not name must have been ruled out before."""
    arrays = []
    for field in schema:
        arrays.append(_converted([row.get(field.name) for row in rows], field))
    return pa.Table.from_arrays(arrays, schema=schema) if arrays else pa.table({})


def check_stored(rows: list[dict[str, Any]], table: pa.Table) -> None:
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
        elif _same(table.schema.field(index), field):
            columns.append(table.column(index))
        else:
            columns.append(_converted(_values(table, index), field))
    return pa.Table.from_arrays(columns, schema=schema)


def _converted(values: list[Any], field: pa.Field) -> pa.Array:
    encode = _mapper(field, _dumps)
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


def _values(table: pa.Table, index: int) -> list[Any]:
    field = table.schema.field(index)
    try:
        values: list[Any] = table.column(index).to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, ImportError) as error:
        raise DataError(
            f"Column {field.name!r} ({field.type}) has a value that Python cannot hold: {error}",
            "Cast the column to a string, or drop it.",
        ) from None
    decode = _mapper(field, _loads)
    return [decode(value) for value in values] if decode else values


def _dumps(value: Any) -> Any:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _loads(value: Any) -> Any:
    if value is None:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        # The mark came with somebody else's file and means something else there.
        return value


def _mapper(field: pa.Field, leaf: Callable[[Any], Any]) -> Callable[[Any], Any] | None:
    """A function that applies `leaf` to every value stored as JSON text in this field; None when there is none."""
    if is_encoded(field):
        return leaf
    if pa.types.is_struct(field.type):
        found = {child.name: mapper for child in field.type if (mapper := _mapper(child, leaf))}
        if not found:
            return None
        return lambda value: None if value is None else {k: found[k](v) if k in found else v for k, v in value.items()}
    if pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
        inner = _mapper(field.type.value_field, leaf)
        if inner is not None:
            return lambda value: None if value is None else [inner(item) for item in value]
    return None
