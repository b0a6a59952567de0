"""Arrow fields at every depth: where JSON text lies, and what converts values."""

from __future__ import annotations

import json

import pyarrow as pa

from trajscore.io.fields import JSON_MARK, children, converter, marks


def _field() -> pa.Field:
    text = pa.field("args", pa.string(), metadata=JSON_MARK)
    call = pa.struct([pa.field("name", pa.string()), text])
    return pa.field("x", pa.struct([pa.field("calls", pa.list_(call)), pa.field("by", pa.map_(pa.string(), call))]))


def test_marks_tell_types_apart_that_arrow_calls_equal() -> None:
    plain = pa.field("x", pa.struct([pa.field("a", pa.list_(pa.string()))]))
    marked = pa.field("x", pa.struct([pa.field("a", pa.list_(pa.field("item", pa.string(), metadata=JSON_MARK)))]))
    assert plain.type.equals(marked.type)
    assert marks(plain) != marks(marked)
    assert marks(marked)[("a", "[]")]
    assert not marks(pa.field("x", pa.null())), "null throughout goes with anything"
    assert children(pa.field("x", pa.int64())) == []


def test_conversion_reaches_structs_lists_and_maps() -> None:
    value = {"calls": [{"name": "f", "args": "[1]"}, None], "by": [("k", {"name": None, "args": None})]}
    loads = converter(_field(), lambda text: None if text is None else json.loads(text))
    assert loads is not None
    assert loads(value) == {
        "calls": [{"name": "f", "args": [1]}, None],
        "by": [("k", {"name": None, "args": None})],
    }
    assert loads(None) is None
    drop = converter(
        _field(), struct=lambda value: {key: item for key, item in value.items() if item is not None}, pairs=dict
    )
    assert drop is not None
    assert drop(value) == {"calls": [{"name": "f", "args": "[1]"}, None], "by": {"k": {}}}
    assert converter(pa.field("x", pa.list_(pa.int8())), json.loads) is None
    assert value["by"] == [("k", {"name": None, "args": None})], "the value itself is not changed"
