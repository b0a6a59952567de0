"""One Arrow schema for rows that never agreed on one, and the way there.

A JSON value keeps its Arrow type where all rows agree (null and anything; whole numbers and fractions if no whole
number loses a digit; objects with different keys). Where they do not, or where Parquet has no such type, the
innermost named field is stored as JSON text and marked with the field metadata `encoding: json`; `values.decoded_rows`
gives the values back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajscore.corpus.identity import EXACT_INT
from trajscore.corpus.values import same_field
from trajscore.errors import DataError
from trajscore.io.fields import JSON_MARK, is_marked

logger = logging.getLogger("trajscore")

MAX_KEYS = 64
"""An object with more different keys is a mapping, not a record: as a struct, each row would carry the keys of all."""

MAX_COLUMNS = 1000
"""Top-level keys of all rows together; more are a mapping that was spread over the row."""

MAX_NESTING = 16
"""Levels of Arrow nesting; Parquet readers stop at about 50, so deeper values are stored as JSON text."""

FREE_FORM = frozenset({"arguments", "parameters", "input_schema"})
"""Objects of tool calls and tool definitions whose keys are up to the tool: a key that is missing is not one that is null."""

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


class Observed:
    """What was seen in one place of the rows: how often, kinds of value, the largest whole number, keys and list items."""

    __slots__ = ("big", "fields", "filled", "items", "kinds", "nulls", "others", "seen")

    def __init__(self) -> None:
        self.kinds = 0
        self.filled = 0
        self.seen = 0
        self.nulls = 0
        self.big = 0
        self.fields: dict[str, Observed] = {}
        self.items: Observed | None = None
        self.others: list[pa.DataType] = []

    def observe(self, value: Any) -> None:
        """Takes in one JSON value; null says nothing."""
        if value is None:
            self.nulls += 1
            return
        self.seen += 1
        self.filled += 1
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

    def child(self, key: str) -> Observed | None:
        """The shape under a key; None once there are too many keys to keep."""
        child = self.fields.get(key)
        if child is None and not self.kinds & _MANY:
            if len(self.fields) == MAX_KEYS:
                self.kinds |= _MANY
                self.fields.clear()
                return None
            child = self.fields[key] = Observed()
        return child

    def item(self) -> Observed:
        """The shape of the list's items."""
        self.items = self.items or Observed()
        return self.items

    def observe_arrow(self, array: pa.Array, field: pa.Field) -> None:
        """Takes in a whole Arrow array; one that holds only nulls says nothing, whatever its type."""
        if array.null_count == len(array):
            return
        kind = self._arrow_kind(array.type, field)
        self.kinds |= kind
        self.filled += len(array) - array.null_count
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
        if is_marked(field):
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

    def holds_text(self) -> bool:
        """Whether any string was seen here, or further in."""
        if self.kinds & (_TEXT | _ENCODED | _MANY | _FOREIGN) or any("string" in str(dtype) for dtype in self.others):
            return True
        inner = [*self.fields.values(), *([self.items] if self.items else [])]
        return any(each.holds_text() for each in inner)

    def keys(self) -> dict[str, Observed]:
        """Keys of the objects seen here, or of those in the lists seen here, that hold any value."""
        return {key: seen for key, seen in (self.items or self).fields.items() if seen.kinds}

    def says_how_much(self) -> bool:
        """Whether nothing but true, false, numbers and words were seen here, and no lists and objects."""
        return not self.kinds & ~(_BOOL | _INT | _FLOAT | _TEXT)

    @property
    def has_many_keys(self) -> bool:
        """Whether so many keys were seen here that they were not kept."""
        return bool(self.kinds & _MANY)

    def varies(self) -> bool:
        """Whether JSON objects here differ in their keys or hold a null, at any depth: a struct would not give them back."""
        if self.items is not None and self.items.varies():
            return True
        return any(
            child.nulls > 0 or child.seen < self.seen or child.varies()
            for child in self.fields.values()
            if child.seen or child.nulls
        )

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
        if name in FREE_FORM and depth and self.kinds == _OBJECT and self.varies():
            return pa.field(name, pa.string(), metadata=JSON_MARK)
        dtype = self.arrow_type(path, depth)
        if dtype is not None:
            return pa.field(name, dtype)
        reason = self.conflict() or self._reason_below(path)
        logger.warning("column %s is stored as JSON text: its values are %s", path, reason)
        return pa.field(name, pa.string(), metadata=JSON_MARK)

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
        self.observed: dict[str, Observed] = {}
        self._exact: dict[str, list[pa.Field]] = {}
        self._from_json: set[str] = set()

    def _observed(self, name: str) -> Observed:
        shape = self.observed.get(name)
        if shape is None:
            if len(self.observed) == MAX_COLUMNS:
                raise DataError(
                    f"The rows have more than {MAX_COLUMNS} different columns; the latest is {name!r}.",
                    "Move keys that vary from row to row into one nested column.",
                )
            shape = self.observed[name] = Observed()
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
                self._observed(name).observe(value)
                if value is not None:
                    self._from_json.add(name)

    def _observe_table(self, table: pa.Table) -> None:
        for field, column in zip(table.schema, table.columns, strict=True):
            shape = self._observed(field.name)
            exact = self._exact.setdefault(field.name, [])
            if not any(same_field(field, other) for other in exact):
                exact.append(field)
            for array in column.chunks:
                shape.observe_arrow(array, field)

    def has_values(self, name: str) -> bool:
        """Whether any row has a value that is not null in this column."""
        return name in self.observed and self.observed[name].kinds != 0

    def schema(self) -> pa.Schema:
        """One schema for all rows, columns in order of first appearance; logs what becomes JSON text."""
        return pa.schema([self._field(name, shape) for name, shape in self.observed.items()])

    def _field(self, name: str, shape: Observed) -> pa.Field:
        exact = self._exact.get(name, [])
        if len(exact) != 1 or name in self._from_json:
            return shape.field(name, name)
        metadata = {k: v for k, v in (exact[0].metadata or {}).items() if k != _FIELD_ID}
        return pa.field(name, exact[0].type, metadata=metadata or None)
