"""Rows -> their kinds: which columns that may hold text a row has, and what each of them is, by names and types.

A kind of row is the set of its columns that may hold text to train on and are not null. Rows of Arrow tables are told by their
columns, all at once; `recognition` says how a kind is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajscore.corpus import layouts
from trajscore.io.fields import is_marked

TEXT, JSON, TURNS, OPEN, LIST, OBJECT, OTHER = "text", "json", "messages", "open messages", "list", "object", "other"
IDS, MANY_IDS = "token ids", "lists of token ids"
"""Types of a column as far as they matter: `json` is text that opens a list, `open messages` end with a turn of somebody else
than the assistant, and token ids are a list of whole numbers under a name that says so, or a list of such lists."""

Kind = frozenset[tuple[str, str]]
"""Columns that are not null, each with its type."""

ENTRIES = "entries by "
"""Before the key of the text: the type of a list of objects that are no turns."""

_CONVERSATIONS = frozenset(name for rank in layouts.CONVERSATIONS for name in rank)
_NAMED = (
    _CONVERSATIONS
    | layouts.RESPONSES
    | layouts.THOUGHTS
    | layouts.REASONINGS
    | layouts.NEVER
    | {name for rank in layouts.REFERENCES for name in rank}
    | {*layouts.PROMPTS, *layouts.SYSTEMS, *layouts.HISTORIES, layouts.TOOLS, layouts.TEXT, layouts.ANSWER, "chat"}
    | {layouts.CONTEXT, layouts.FUNCTIONS}
    | layouts.TOKEN_IDS
)


@cache
def may_hold_text(name: str) -> bool:
    """Whether a column of that lower-case name can be part of a trajectory's text."""
    base = layouts.numbered(name)[0]
    return (
        base in _NAMED
        or layouts.prefixed(base) is not None
        or layouts.may_be_generated(name)
        or layouts.may_be_thought(name)
    )


@cache
def may_hold_turns(name: str) -> bool:
    """Whether a column of that lower-case name can be a list of messages."""
    return name in _CONVERSATIONS | layouts.RESPONSES | {*layouts.PROMPTS, *layouts.HISTORIES}


def type_of(name: str, value: Any) -> str:
    """The type of a value that is not null, under the lower-case name of its column."""
    if type(value) is str:
        return JSON if name in _CONVERSATIONS and value.lstrip()[:1] == "[" else TEXT
    if isinstance(value, list | tuple):
        if name in layouts.TOKEN_IDS:
            first = next((each for each in value if each is not None), None)
            if first is None or type(first) is int:
                return IDS
            if isinstance(first, list | tuple):
                return MANY_IDS
        if not value or not _is_object(value[0]):
            return LIST
        if "role" not in value[0] and (key := _entry(value[0])):
            return ENTRIES + key
        last = value[-1]
        return OPEN if _is_object(last) and _role(last) not in (None, "assistant") else TURNS
    return OBJECT if isinstance(value, Mapping) else OTHER


def _is_object(value: Any) -> bool:
    return type(value) is dict or isinstance(value, Mapping)


def _entry(keys: Collection[str]) -> str:
    """The key under which objects of a list hold their text; empty where they are turns, or anything else."""
    if any(key in keys for key in layouts.ROLE_KEYS):
        return ""
    return next((key for key in layouts.ENTRIES if key in keys), "")


def _role(turn: Mapping[str, Any]) -> str | None:
    said = turn.get("role")
    if said is None:
        said = next((turn[key] for key in layouts.ROLE_KEYS if turn.get(key) is not None), None)
    return layouts.SPEAKERS.get(said.lower()) if isinstance(said, str) else None


def kind_of(row: Mapping[str, Any], extra: Collection[str] = ()) -> Kind:
    """The kind of a row. `extra` are columns that flags name."""
    return frozenset(
        (name, type_of(name.lower(), value))
        for name, value in row.items()
        if value is not None and (may_hold_text(name.lower()) or name in extra)
    )


class Kinds:
    """Kinds of the rows of Arrow tables, column by column.

    Args:
        extra: columns that flags name.
    """

    def __init__(self, extra: Collection[str] = ()) -> None:
        self._extra = extra

    def of(self, table: pa.Table) -> list[tuple[Kind, int]]:
        """Each kind that occurs, and in how many rows."""
        names = [name for name in table.column_names if may_hold_text(name.lower()) or name in self._extra]
        if not names:
            return [(frozenset(), table.num_rows)]
        types: list[str] = ["", TEXT, JSON, TURNS, OPEN, LIST, OBJECT, OTHER, IDS, MANY_IDS]
        codes = np.stack([_codes(table.column(name), table.schema.field(name), types) for name in names], axis=1)
        found, counts = np.unique(codes, axis=0, return_counts=True)
        return [
            (frozenset((name, types[code]) for name, code in zip(names, row, strict=True) if code), int(count))
            for row, count in zip(found, counts, strict=True)
        ]


def _codes(column: pa.ChunkedArray, field: pa.Field, types: list[str]) -> Any:
    """For each value its place in the list of types; 0 for null."""
    name, dtype, is_ = field.name.lower(), field.type, pa.types
    missing = column.is_null().to_numpy(zero_copy_only=False)
    text = is_.is_string(dtype) or is_.is_large_string(dtype)
    if is_marked(field) or (text and name in _CONVERSATIONS) or not _plain(dtype):
        values = [_decoded(value, field) for value in column.to_pylist()]
        return np.array([0 if value is None else types.index(type_of(name, value)) for value in values], np.int8)
    if is_.is_list(dtype) or is_.is_large_list(dtype):
        found = LIST
        if name in layouts.TOKEN_IDS and is_.is_integer(dtype.value_type):
            found = IDS
        elif name in layouts.TOKEN_IDS and (is_.is_list(dtype.value_type) or is_.is_large_list(dtype.value_type)):
            # Of empty lists, row by row: they are ids that are none.
            lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
            codes = np.where(lengths > 0, types.index(MANY_IDS), types.index(IDS))
            return np.where(missing, 0, codes).astype(np.int8)
        if is_.is_struct(dtype.value_type):
            return np.concatenate([_turn_codes(chunk, types) for chunk in column.chunks] or [np.empty(0, np.int8)])
    else:
        text = text or (
            is_.is_dictionary(dtype) and (is_.is_string(dtype.value_type) or is_.is_large_string(dtype.value_type))
        )
        found = TEXT if text else OBJECT if is_.is_struct(dtype) else OTHER
    return np.where(missing, 0, types.index(found)).astype(np.int8)


def _plain(dtype: pa.DataType) -> bool:
    is_ = pa.types
    if is_.is_list(dtype) or is_.is_large_list(dtype):
        return _plain(dtype.value_type)
    kinds = (is_.is_string_view, is_.is_list_view, is_.is_large_list_view, is_.is_fixed_size_list)
    return not any(test(dtype) for test in kinds)


def _decoded(value: Any, field: pa.Field) -> Any:
    import json

    if not is_marked(field) or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _turn_codes(array: pa.Array, types: list[str]) -> Any:
    """Lists of objects: whether each ends with a user's turn."""
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    items = array.flatten()
    last = np.cumsum(lengths) - 1
    key = _entry([field.name for field in items.type])
    found = ENTRIES + key if key else TURNS
    if found not in types:
        types.append(found)
    codes = np.where(lengths > 0, types.index(found), types.index(LIST)).astype(np.int8)
    for key in layouts.ROLE_KEYS:
        place = items.type.get_field_index(key)
        if place >= 0 and pa.types.is_string(items.type.field(place).type) and len(items):
            roles = pc.struct_field(items, [place]).take(pa.array(np.maximum(last, 0)))
            others = [name for name, role in layouts.SPEAKERS.items() if role != "assistant"]
            is_other = pc.is_in(pc.utf8_lower(roles), pa.array(others)).to_numpy(zero_copy_only=False)
            codes[is_other & (lengths > 0)] = types.index(OPEN)
    codes[array.is_null().to_numpy(zero_copy_only=False)] = 0
    return codes
