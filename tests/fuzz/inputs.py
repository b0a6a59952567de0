"""Inputs that no one meant, for the fuzz tests: bytes, JSON values, rows of every layout gone wrong, Arrow tables of odd types.

`TRAJSCORE_FUZZ=N` multiplies the number of examples by N and draws new ones on every run; without it they are few and the same.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("TRAJSCORE_FUZZ", "1"))

HALF = "\ud83d"
ODD_TEXTS = (
    *("", " ", "\n\n", "\0", "\x1b[2J", "\r\n\t\x0b", "\u2028\u0085", "\u202egnp.exe\u2066", "\ufeff", "\ufffd\uffff"),
    *("<|im_start|>assistant\n", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "[INST]", "</s>"),
    *(
        "{{ 7 * 7 }}",
        "{% raise %}",
        "\\",
        '"',
        "'",
        "$1. $",
        "```",
        "\\begin{x}",
        "NaN",
        "null",
        "[]",
        "{}",
        "{",
        "e\u0301",
    ),
    *(
        "\U000f0000",
        "\U0010ffff",
        "👩‍👩‍👧",
        "</script><img src=x onerror=alert(1)>",
        "../../x",
        "a\nb",
        "9" * 400,
        "x" * 70_000,
    ),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(ODD_TEXTS)
BROKEN_TEXTS = st.builds(lambda before, after: before + HALF + after, TEXTS, TEXTS)


def examples(count: int) -> settings:
    """Settings for so many examples in CI."""
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Spelt:
    """JSON text that `json.dumps` does not write: nesting without end, a number of thousands of digits."""

    text: str
    storable: bool


SPELT = st.sampled_from(
    [
        Spelt("[" * 90 + "]" * 90, True),
        Spelt("[" * 100 + "]" * 100, False),
        Spelt('{"a":' * 400 + "{}" + "}" * 400, False),
        Spelt('[{"[\\"":' * 30_000 + '"]"' + "}]" * 30_000, False),
        Spelt("-" + "7" * 4300, True),
        Spelt("7" * 4301, False),
        Spelt("1" + "0" * 20 + "e5", True),
        Spelt("1e999", True),
    ]
)


def spelt_json(value: Any, ascii_only: bool = True) -> bytes:
    """A value with `Spelt` parts as JSON; halves of surrogate pairs are always escaped."""
    parts: list[str] = []

    def stand_in(part: Spelt) -> str:
        parts.append(part.text)
        return f"\x7fspelt{len(parts) - 1}\x7f"

    text = json.dumps(value, default=stand_in, ensure_ascii=True)
    for number, part in enumerate(parts):
        text = text.replace(json.dumps(f"\x7fspelt{number}\x7f"), part, 1)
    return text.encode() if ascii_only else text.replace("\\u00e9", "é").encode()


def is_storable(value: Any) -> bool:
    """Whether a row with this value can be kept whole, from how it was made."""
    if isinstance(value, Spelt):
        return value.storable
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(is_storable(each) for pair in value.items() for each in pair)
    return all(map(is_storable, value)) if isinstance(value, list) else True


KEYS = st.sampled_from(
    ["a", "b", "role", "content", "type", "text", "function", "arguments", "name", "", "\0", "é", "a.b"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(-9, 9) | st.floats() | TEXTS
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS | st.just([]) | st.just({}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
ODD_VALUES = st.one_of(
    VALUES, VALUES, VALUES, SPELT, BROKEN_TEXTS, VALUES.map(lambda value: spelt_json(value).decode())
)

_CALLS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "id": VALUES,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({}, optional={"name": TEXTS | VALUES, "arguments": VALUES | TEXTS})
            | VALUES,
        },
    ),
    max_size=2,
)
_ROLES = st.sampled_from(
    ["user", "assistant", "assistant", "system", "tool", "developer", "ipython", "oracle", "", None]
)
_CONTENT = st.one_of(
    TEXTS,
    TEXTS,
    ODD_VALUES,
    st.lists(
        st.fixed_dictionaries({"type": st.sampled_from(["text", "image", 1]), "text": TEXTS | VALUES}), max_size=2
    ),
)
_MESSAGE = st.fixed_dictionaries(
    {"role": _ROLES, "content": _CONTENT},
    optional={"reasoning_content": TEXTS | VALUES, "tool_calls": _CALLS | VALUES, "name": VALUES, "\0": VALUES},
)
_SPOKEN = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system", "tool", "GPT", "x", 1]), "value": _CONTENT}
)
_MANY = st.integers(500, 2000).map(
    lambda count: [{"role": ("user", "assistant")[i % 2], "content": str(i)} for i in range(count)]
)
_TURNS = st.lists(_MESSAGE, max_size=4)
_CHAT = st.tuples(TEXTS, TEXTS).map(
    lambda said: [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]
)
_LAYOUTS = st.one_of(
    st.fixed_dictionaries({"messages": _CHAT}, optional={"tools": VALUES}),
    st.fixed_dictionaries({"messages": _TURNS}, optional={"tools": VALUES | st.lists(_CALLS, max_size=2)}),
    st.fixed_dictionaries({"messages": _TURNS.map(spelt_json).map(bytes.decode)}),
    st.fixed_dictionaries({"conversations": st.lists(_SPOKEN | _MESSAGE, max_size=3)}, optional={"system": VALUES}),
    st.fixed_dictionaries({"prompt": TEXTS | _TURNS, "completion": TEXTS | _TURNS}),
    st.fixed_dictionaries({"instruction": _CONTENT, "output": _CONTENT}, optional={"input": VALUES}),
    st.fixed_dictionaries({"text": _CONTENT}),
    st.fixed_dictionaries({"messages": _MANY}),
)
_IDS = st.one_of(st.none(), VALUES, TEXTS, st.integers(0, 3), st.sampled_from(["", "a", "a\nb", "i" * 5000, HALF]))
_EXTRA = st.dictionaries(
    st.sampled_from(["messages", "text", "prompt", "tools", "correct", "x", "y", "", "\0", "row", "a" * 300]),
    ODD_VALUES,
    max_size=2,
)


def _with_more(layout: dict[str, Any], names: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    return {**names, **layout, **extra}


ROWS = st.lists(
    st.builds(
        _with_more,
        _LAYOUTS,
        st.fixed_dictionaries({}, optional={"id": _IDS, "prompt_id": _IDS, "teacher": _IDS}),
        _EXTRA | st.just({}),
    ),
    min_size=1,
    max_size=5,
)


def written(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """Rows as a file of that suffix."""
    texts = [spelt_json(row) for row in rows]
    data = (
        b"[\n" + b",\n ".join(texts) + b"\n]" if suffix.startswith(".json") and "l" not in suffix else b"\n".join(texts)
    )
    return gzip.compress(data) if suffix.endswith(".gz") else data


_PLAIN = [{"id": f"r{i}", "messages": [{"role": "assistant", "content": "é" * i}], "n": i} for i in range(6)]


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


_WHOLE: dict[str, bytes] = {
    **{suffix: written(_PLAIN, suffix) for suffix in (".jsonl", ".json", ".jsonl.gz", ".json.gz")},
    ".parquet": parquet(pa.Table.from_pylist(_PLAIN)),
}


@st.composite
def damaged(draw: st.DrawFn, whole: dict[str, bytes]) -> tuple[str, bytes]:
    """A suffix and the bytes of a valid file of it with something cut off, doubled, overwritten or flipped."""
    suffix = draw(st.sampled_from(sorted(whole)))
    data = bytearray(whole[suffix])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 30))
        what = draw(st.sampled_from(["flip", "flip", "cut", "double", "insert", "zero"]))
        if what == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del data[at : None if draw(st.booleans()) else at + length]
        elif what == "double":
            data[at:at] = data[at : at + length]
        elif what == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        else:
            data[at : at + length] = bytes(length)
    return suffix, bytes(data)


_PIECES = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    ",",
    "\n",
    "\\",
    "\\u",
    "\\ud800",
    "text",
    '"text"',
    '"x"',
    "1",
    "-",
    "e",
    "NaN",
    "\xff",
]
FILES = st.one_of(
    damaged(_WHOLE),
    st.tuples(st.sampled_from(sorted(_WHOLE)), st.binary(max_size=60)),
    st.tuples(
        st.sampled_from([".jsonl", ".json"]),
        st.lists(st.sampled_from(_PIECES), max_size=12).map(lambda pieces: "".join(pieces).encode("latin-1")),
    ),
    st.tuples(st.sampled_from([".jsonl", ".json"]), ODD_VALUES.map(spelt_json)),
)


def _careless(values: list[bytes | None], make: Callable[[], pa.DataType] = pa.string) -> pa.Array:
    """Bytes as a column of strings, unchecked, as careless writers leave them."""
    return pa.Array.from_buffers(make(), len(values), pa.array(values, pa.binary()).buffers())


_BYTES = (
    st.none() | st.binary(max_size=6) | st.sampled_from([b"ok", "é".encode(), b"caf\xe9", b"\xed\xa0\x80", b"\0\xff"])
)


@st.composite
def careless_tables(draw: st.DrawFn) -> tuple[pa.Table, list[bool]]:
    """A table whose strings may be any bytes, at the top and inside, and which of its rows are UTF-8 throughout."""
    count = draw(st.integers(1, 6))
    top, inside = (draw(st.lists(_BYTES, min_size=count, max_size=count)) for _ in range(2))
    large = pa.Array.from_buffers(pa.large_string(), count, pa.array(inside, pa.large_binary()).buffers())
    listed = pa.ListArray.from_arrays(
        list(range(count + 1)), pa.StructArray.from_arrays([large, pa.array(top)], ["s", "raw"])
    )
    table = pa.table({"text": _careless(top), "deep": listed, "n": list(range(count))})

    def fine(value: bytes | None) -> bool:
        return (value or b"").decode("utf-8", "replace").encode() == (value or b"")

    return table, [fine(one) and fine(other) for one, other in zip(top, inside, strict=True)]


_ODD_ARRAYS: list[Callable[[int], pa.Array]] = [
    lambda n: pa.array([2**61 * (i % 3) for i in range(n)], pa.timestamp("ns")),
    lambda n: pa.array([-(2**51)] * n, pa.timestamp("s")),
    lambda n: pa.array([5] * n, pa.timestamp("us", "Nowhere/Nothing")),
    lambda n: pa.array([5] * n, pa.timestamp("ns", "Europe/Berlin")),
    lambda n: pa.array([10**9] * n, pa.date32()),
    lambda n: pa.array([10**17] * n, pa.date64()),
    lambda n: pa.array([2**62] * n, pa.duration("s")),
    lambda n: pa.array([1] * n, pa.duration("ns")),
    lambda n: pa.array([12345] * n, pa.time64("ns")),
    lambda n: pa.array([b"\xff"] * n, pa.binary()),
    lambda n: pa.array([b"\xff"] * n, pa.binary(1)),
    lambda n: pa.array([[("k", 1), ("k", 2)]] * n, pa.map_(pa.string(), pa.int8())),
    lambda n: pa.array([[1, 2]] * n, pa.list_(pa.int8(), 2)),
    lambda n: pa.array(["x"] * n).dictionary_encode(),
    lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    lambda n: pa.array([float("nan")] * n, pa.float16()),
    pa.nulls,
    lambda n: pa.array(["1.5"] * n).cast(pa.decimal128(5, 2)),
    lambda n: pa.array([{"a": None}] * n, pa.struct([("a", pa.struct([("b", pa.null())]))])),
    lambda n: pa.array(["[" * 2000] * n, pa.large_string()),
    lambda n: pa.array(["[" * 400 + "]" * 400] * n),
    lambda n: pa.array(['{"a": "\\ud800"}', "null", "7" * 5000, "{"] * n)[:n],
    lambda n: pa.array([[1, 2, -100]] * n, pa.list_(pa.int64())),
    lambda n: pa.array([[None, 2**40]] * n, pa.list_(pa.int64())),
]


@st.composite
def odd_tables(draw: st.DrawFn, rows: int | None = None) -> pa.Table:
    """A table with columns of types that JSON has not, some of which say that they hold JSON text."""
    count = draw(st.integers(1, 3)) if rows is None else rows
    known = ["text", "messages", "tools", "id", "x", "y", "z", "prompt", "completion", "teacher"]
    names = draw(st.lists(st.sampled_from(known), unique=True))
    columns: dict[str, pa.Array] = {"text": pa.array(["hello"] * count)}
    columns |= {name: draw(st.sampled_from(_ODD_ARRAYS))(count) for name in names}
    marked = {name: draw(st.booleans()) and pa.types.is_string(column.type) for name, column in columns.items()}
    fields = [
        pa.field(name, column.type, metadata={"encoding": "json"} if marked[name] else None)
        for name, column in columns.items()
    ]
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))
