"""Arrow fields, walked to every depth, and the mark on those that hold JSON text in place of the values themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

Converter = Callable[[Any], Any]

JSON_MARK = {b"encoding": b"json"}
"""Metadata of a field that holds JSON text in place of the values themselves."""


INPUT_NAME = b"input_name"
"""Metadata of a field of the corpus that scores keep under another name: the name that it has in the corpus."""


def under_own_names(schema: pa.Schema) -> pa.Schema:
    """A schema whose fields bear the names that they have in the corpus, where no other field has that name.

    >>> under_own_names(pa.schema([pa.field("input_status", pa.string(), metadata={INPUT_NAME: b"status"})])).names
    ['status']
    """
    taken, fields = set(schema.names), []
    for field in schema:
        metadata = dict(field.metadata or {})
        own = metadata.pop(INPUT_NAME, b"").decode()
        fields.append(field.with_name(own).with_metadata(metadata or None) if own and own not in taken else field)
    return pa.schema(fields, metadata=schema.metadata)


def is_marked(field: pa.Field) -> bool:
    """Whether a field says that its strings are JSON text."""
    return (field.metadata or {}).get(b"encoding") == b"json"


def children(field: pa.Field) -> list[tuple[str, pa.Field]]:
    """The fields inside a field, with a name for the way there; none for a plain value.

    >>> [name for name, _ in children(pa.field("x", pa.list_(pa.int8())))]
    ['[]']
    """
    kind = field.type
    if pa.types.is_struct(kind):
        return [(child.name, child) for child in kind]
    if pa.types.is_map(kind):
        return [("{}", kind.item_field)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [("[]", kind.value_field)]
    return []


def marks(field: pa.Field, way: tuple[str, ...] = ()) -> dict[tuple[str, ...], bool]:
    """Whether each place in a field holds JSON text; places that are null throughout hold nothing.

    Arrow types compare equal without regard to it.
    """
    here = {} if pa.types.is_null(field.type) else {way: is_marked(field)}
    for name, child in children(field):
        here |= marks(child, (*way, name))
    return here


def converter(
    field: pa.Field,
    marked: Converter | None = None,
    *,
    struct: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    pairs: Callable[[list[tuple[Any, Any]]], Any] | None = None,
) -> Converter | None:
    """What converts the Python values of a field, at every depth; None where they stay as they are.

    Args:
        field: the field.
        marked: applied to JSON text.
        struct: applied to the keys and values of every object, before what is inside it is converted.
        pairs: applied to the pairs of every map, after what is inside it was converted.
    """
    if is_marked(field):
        return marked
    inner = {
        name: made
        for name, child in children(field)
        if (made := converter(child, marked, struct=struct, pairs=pairs)) is not None
    }
    if pa.types.is_struct(field.type):
        if not inner and struct is None:
            return None
        return _known(lambda value: _of_struct(struct(value) if struct else value, inner))
    if pa.types.is_map(field.type):
        item = inner.get("{}")
        if item is None and pairs is None:
            return None
        return _known(lambda value: _of_map(value, item, pairs))
    each = inner.get("[]")
    return None if each is None else _known(lambda value: [each(item) for item in value])


def _known(convert: Converter) -> Converter:
    return lambda value: None if value is None else convert(value)


def _of_struct(value: dict[str, Any], inner: dict[str, Converter]) -> dict[str, Any]:
    return {key: inner[key](item) if key in inner else item for key, item in value.items()} if inner else value


def _of_map(
    value: list[tuple[Any, Any]], item: Converter | None, pairs: Callable[[list[tuple[Any, Any]]], Any] | None
) -> Any:
    converted = [(key, item(each)) for key, each in value] if item else value
    return pairs(converted) if pairs else converted
