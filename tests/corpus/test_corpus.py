"""Files, folders, globs and hub data sets -> chunks: nothing lost, nothing changed, every error with its place."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.paths import SHARED
from trajscore.corpus import (
    Corpus,
    FieldNames,
    SourceOptions,
    Trajectory,
    decoded_rows,
    hub,
    jsonfiles,
    open_corpus,
    sources,
)
from trajscore.corpus.identity import without_nulls
from trajscore.errors import DataError, MissingExtraError, TrajscoreError, UsageError
from trajscore.schema import COLUMNS


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"id": f"r{i}", "question": f"What is {i}?", "answer": str(i), **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in rows))
    return path


def read(corpus: Corpus, size: int = 1000, start: int = 0) -> tuple[list[dict[str, Any]], list[Trajectory]]:
    """All rows and trajectories, with the promises that hold of every chunk checked on the way."""
    rows: list[dict[str, Any]] = []
    trajectories: list[Trajectory] = []
    for chunk in corpus.chunks(size, start):
        assert chunk.first_row == start + len(rows)
        assert chunk.table.num_rows == len(chunk.trajectories) <= size
        assert chunk.table.schema.equals(corpus.schema, check_metadata=True)
        rows += decoded_rows(chunk.table)
        trajectories += chunk.trajectories
    return rows, trajectories


def through_parquet(corpus: Corpus, path: Path) -> Corpus:
    with pq.ParquetWriter(path, corpus.schema) as writer:
        for chunk in corpus.chunks(7):
            writer.write_table(chunk.table)
    return open_corpus(path)


def fails(error: type[TrajscoreError], *words: str, data: Any, options: SourceOptions = SourceOptions()) -> None:  # noqa: B008
    with pytest.raises(error) as caught:
        open_corpus(data, options)
    assert caught.value.exit_code == (2 if error is UsageError else 1)
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
@pytest.mark.parametrize("name", ["agent_multiturn", "r1_math500", "tora_gsm8k_tool", "zeroeval_gsm"])
def test_real_files_come_back_whole_and_mean_the_same_from_parquet(name: str, tmp_path: Path) -> None:
    path = SHARED / f"{name}.jsonl"
    given_rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    corpus = open_corpus(path)
    rows, trajectories = read(corpus)
    assert corpus.n_rows == len(given_rows)
    assert without_nulls(rows) == without_nulls(given_rows)
    assert [r.keys() for r in rows] == [r.keys() for r in given_rows]
    assert not [t.refusal for t in trajectories if t.refusal]
    assert [t.id for t in trajectories] == [r["id"] for r in given_rows]
    again_rows, again = read(through_parquet(corpus, tmp_path / "x.parquet"))
    assert again_rows == rows
    assert again == trajectories


HETEROGENEOUS: list[dict[str, Any]] = [
    row(0, meta={"a": 1}, mixed=1, empty={}, number=1, big=1, many={f"k{i}": i for i in range(40)}),
    row(
        1,
        meta={"b": "x"},
        mixed="one",
        empty={},
        number=0.5,
        big=2**70 + 1,
        huge=2**63,
        many={f"j{i}": i for i in range(40)},
    ),
    row(2, meta=None, mixed=None, number=None, big=2**63 - 1, items=[1, "x", None], fraction=2**60, nothing=None),
    row(3, meta={"a": None, "c": {"d": [[1], []]}}, items=[], fraction=0.25, nested=[{"z": {}}, {"z": {"y": "s"}}]),
]


def test_rows_that_disagree_are_stored_and_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "trajscore"):
        corpus = open_corpus(write(tmp_path / "a.jsonl", HETEROGENEOUS))
    types = {field.name: (str(field.type), field.metadata) for field in corpus.schema}
    encoded = ("string", {b"encoding": b"json"})
    assert types["number"] == ("double", None)
    assert types["nothing"] == ("null", None)
    assert types["meta"] == ("struct<a: int64, b: string, c: struct<d: list<item: list<item: int64>>>>", None)
    assert types["nested"] == ("list<item: struct<z: struct<y: string>>>", None)
    for name in ("mixed", "empty", "big", "huge", "many", "items", "fraction"):
        assert types[name] == encoded, name
        assert f"column {name} is stored as JSON text" in caplog.text
    assert "whole number and string" in caplog.text
    assert list(types)[:3] == ["id", "question", "answer"]
    rows, trajectories = read(corpus, 3)
    assert without_nulls(rows) == without_nulls(HETEROGENEOUS)
    assert rows[1]["big"] == 2**70 + 1
    again_rows, again = read(through_parquet(corpus, tmp_path / "x.parquet"))
    assert (again_rows, again) == (rows, trajectories)


def test_only_the_innermost_disagreeing_field_becomes_text(tmp_path: Path) -> None:
    def call(arguments: Any) -> dict[str, Any]:
        turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        return {"messages": [{"role": "user", "content": "q"}, turn]}

    given_rows = [call({"x": 1, "y": None}), call('{"x": 1}'), call({"x": [1]}), call(None)]
    corpus = open_corpus(write(tmp_path / "a.jsonl", given_rows))
    message = corpus.schema.field("messages").type.value_type
    function = message.field("tool_calls").type.value_type.field("function").type
    assert str(message.field("content").type) == "string"
    assert function.field("arguments").metadata == {b"encoding": b"json"}
    rows, trajectories = read(corpus)
    assert without_nulls(rows) == without_nulls(given_rows)
    kept = [t.messages[1]["tool_calls"][0]["function"].get("arguments") for t in trajectories if t.messages]
    assert kept == [{"x": 1, "y": None}, '{"x": 1}', {"x": [1]}, None]
    assert read(through_parquet(corpus, tmp_path / "x.parquet"))[1] == trajectories


def test_arguments_of_tool_calls_come_back_as_they_were(tmp_path: Path) -> None:
    """A struct would give every call the keys of all calls; a missing key and a null one are not the same to a tool."""

    def row(arguments: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        turn = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
        }
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        return {"messages": [{"role": "user", "content": "q"}, turn], "tools": tools}

    given_rows = [row({"unit": None, "a": 1}, {"default": None}), row({"b": {"c": None}}, {"type": "object"})]
    corpus = open_corpus(write(tmp_path / "a.jsonl", given_rows))
    for trajectories in (read(corpus)[1], read(through_parquet(corpus, tmp_path / "x.parquet"))[1]):
        calls = [t.messages[1]["tool_calls"][0]["function"]["arguments"] for t in trajectories if t.messages]
        assert calls == [{"unit": None, "a": 1}, {"b": {"c": None}}]
        assert [t.tools[0]["function"]["parameters"] for t in trajectories if t.tools] == [
            {"default": None},
            {"type": "object"},
        ]
    alike = open_corpus(write(tmp_path / "b.jsonl", [row({"a": 1}, {"x": "1"}), row({"a": 2}, {"x": "2"})]))
    assert "struct<a: int64>" in str(alike.schema.field("messages").type)


def test_hashed_ids_are_the_same_from_json_and_parquet(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": str(i), "s": s, "o": o} for i, (s, o) in enumerate([(1, {}), (0.5, {"k": 2})])]
    corpus = open_corpus(write(tmp_path / "a.jsonl", rows))
    ids = [t.id for t in read(corpus)[1]]
    assert len(set(ids)) == 2
    assert [t.id for t in read(through_parquet(corpus, tmp_path / "x.parquet"))[1]] == ids


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-9, 9) | st.floats() | st.text() | st.just({}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "", "\0", "é"]), inner),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Equality in which NaN equals itself, keys with null are no keys, and true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = {key for pair in (one, other) for key, value in pair.items() if value is not None}
        return all(same(one.get(key), other.get(key)) for key in keys)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    nans = [isinstance(value, float) and math.isnan(value) for value in (one, other)]
    return all(nans) or bool(one == other)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3) | st.sampled_from("xyz"), JSON_VALUES), min_size=1, max_size=4)
)
def test_any_objects_survive_or_are_refused(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**r, "text": str(i)} for i, r in enumerate(rows)])
    try:
        corpus = open_corpus(path)
        back, trajectories = read(corpus, 2)
        again_rows, again = read(through_parquet(corpus, tmp_path / "x.parquet"))
    except TrajscoreError:
        # A column named like one of ours; anything else would be a bug.
        assert any(name in COLUMNS for row in rows for name in row), rows
        return
    whole = [i for i, trajectory in enumerate(trajectories) if trajectory.refusal != "not_storable"]
    assert len(back) == len(rows)
    assert same([back[i] for i in whole], [{**rows[i], "text": str(i)} for i in whole])
    assert same(again_rows, back)
    assert [t.id for t in again] == [t.id for t in trajectories]


def test_line_separators_that_are_none(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\u2029d\x00\r\n"
    lines = [json.dumps(row(i, note=text), ensure_ascii=i == 0).encode() for i in range(2)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\r\n  \n" + lines[1] + b"\r\n")
    rows, _ = read(open_corpus(path))
    assert [r["note"] for r in rows] == [text, text]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".json.gz"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"id": "b", "text": }', ("not valid JSON", "near")),
        (b'{"id": "b"', ("not valid JSON",)),
        (b'{"text": "caf\xe9"}', ("byte 0xe9 at column 14 is not UTF-8", "iconv")),
        (b"[1, 2]", ("not an object", "list")),
        (b'"text"', ("not an object",)),
        (b'{"text": ' + b"[" * 5000 + b"}", ("not valid JSON",)),
        (b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b", }", ("not valid JSON",)),
        (b'{"text": ' + b"[" * 5000 + b'"', ("not valid JSON",)),
        (b"[" * 5000 + b"]" * 5000, ("not an object", "list")),
    ],
)
def test_a_broken_line_is_named(line: bytes, words: tuple[str, ...], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = b'\n{"id": "a", "text": "x"}\n' + line + b"\n"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    fails(DataError, str(path), "line 3", *words, data=path)


@pytest.mark.parametrize(
    ("element", "words"),
    [
        (b'{"text": }', ("not valid JSON",)),
        (b'{"text": "caf\xe9"}', ("byte 0xe9 at column 14 is not UTF-8",)),
        (b"7", ("not an object", "row 2 of the list")),
        (b'{"text": ' + b"[" * 5000 + b"}", ("not valid JSON",)),
        (b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b", }", ("not valid JSON",)),
        (b'{"text": "y"} 1', ("expected ','",)),
    ],
)
def test_a_broken_element_of_a_list_is_named(element: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"text": "x"},\n\n' + element + b',\n{"text": "z"}]')
    fails(DataError, str(path), "line 3", *words, data=path)


BAD_VALUES = [
    (b'"a\\ud83d b"', "a\ufffd b", ("\\ud83d, half of a surrogate pair", "U+FFFD")),
    (b'{"\\udc00": ["\\uDBFF", "\\ud83d\\ude00"]}', {"\ufffd": ["\ufffd", "😀"]}, ("\\udc00", "U+FFFD")),
    (b"[" * 100 + b"]" * 100, None, ("Column 'x' is nested deeper than 100 levels", "null")),
    (b'{"[":' * 5000 + b'"}\\""' + b"}" * 5000, None, ("Column 'x' is nested deeper than 100 levels", "null")),
    (b"[" * 10**5 + b"]" * 10**5, None, ("nested deeper than 100 levels",)),
    (b"1" * 5000, None, ("more than 4300 digits", "null")),
    (b'["k", -' + b"1" * 5000 + b"]", ["k", None], ("more than 4300 digits",)),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
@pytest.mark.parametrize(("value", "kept", "words"), BAD_VALUES)
def test_a_value_that_cannot_be_stored_refuses_its_row(
    value: bytes, kept: Any, words: tuple[str, ...], suffix: str, tmp_path: Path
) -> None:
    lines = [json.dumps(row(i)).encode() for i in range(3)]
    lines[1] = b'{"id": "r1", "question": "[", "x": %b, "answer": "1"}' % value
    content = b"[" + b",\n".join(lines) + b"]" if suffix == ".json" else b"\n".join(lines)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    corpus = open_corpus(path)
    rows, trajectories = read(corpus, 2)
    assert [t.id for t in trajectories] == ["r0", "r1", "r2"]
    assert [t.refusal for t in trajectories] == ["", "not_storable", ""]
    assert rows[1] == {"id": "r1", "question": "[", "x": kept, "answer": "1"}
    assert [rows[0]["answer"], rows[2]["answer"]] == ["0", "2"]
    for word in words:
        assert word in trajectories[1].detail
    assert read(corpus, 1, 1) == (rows[1:], trajectories[1:])
    # Nothing is left to refuse once it was stored.
    again = read(through_parquet(corpus, tmp_path / "x.parquet"))
    assert again[0] == rows
    assert [t.refusal for t in again[1]] == ["", "", ""]


def test_just_below_the_limits_everything_is_kept(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(99):
        deep = [deep]
    rows = [row(0, x=deep, y=10**4299, z="\U0001f600")]
    found, (trajectory,) = read(open_corpus(write(tmp_path / "a.jsonl", rows)))
    assert found == rows
    assert trajectory.refusal == ""


def test_rows_that_differ_only_in_what_cannot_be_stored_keep_their_prompts_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "\\ud800"}\n{"text": "\\udfff"}\n{"text": "x"}\n{"prompt": "p", "response": "\\ud800"}\n'
    )
    _, trajectories = read(open_corpus(path))
    assert [t.refusal for t in trajectories] == ["not_storable", "duplicate_id", "", "not_storable"]
    assert len({t.id for t in trajectories}) == len({t.prompt_id for t in trajectories}) == 3


def careless(values: list[bytes | None]) -> pa.Array:
    """Bytes that claim to be strings, as careless writers of Parquet leave them."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_strings_of_a_parquet_file_that_are_not_utf8(tmp_path: Path) -> None:
    answers = careless([b"0", b"caf\xe9", None, "é".encode(), b"4"])
    inner = pa.StructArray.from_arrays(
        [careless([b"a", b"b", b"c", b"d", b"\xff\xfe"]), pa.array(range(5))], ["s", "n"]
    )
    listed = pa.ListArray.from_arrays([0, 1, 2, 3, 4, 5], inner)
    questions = pa.array([f"What is {i}?" for i in range(5)])
    ids = pa.array([f"r{i}" for i in range(5)])
    table = pa.table(
        {"id": ids, "question": questions, "answer": answers, "deep": listed, "raw": pa.array([b"\xff"] * 5)}
    )
    # The row that spoils it comes late: a survey that reads only ids there would miss it.
    first = pa.Table.from_pylist([row(i + 5, deep=[], raw=b"") for i in range(600)])
    pq.write_table(pa.concat_tables([first.cast(table.schema), table]), tmp_path / "a.parquet")
    corpus = open_corpus(tmp_path / "a.parquet")
    rows, trajectories = read(corpus, 1000)
    assert [t.refusal for t in trajectories[600:]] == ["", "not_storable", "empty_response", "", "not_storable"]
    assert rows[601]["answer"] == "caf\ufffd"
    assert rows[604]["deep"] == [{"s": "\ufffd\ufffd", "n": 4}]
    assert [r["raw"] for r in rows[600:]] == [b"\xff"] * 5
    assert rows[603] == {
        "id": "r3",
        "question": "What is 3?",
        "answer": "é",
        "deep": [{"s": "d", "n": 3}],
        "raw": b"\xff",
    }
    assert "Column 'answer' holds bytes that are not UTF-8" in trajectories[601].detail
    assert corpus.schema.equals(table.schema)
    assert read(corpus, 7, 599) == (rows[599:], trajectories[599:])


def test_a_value_that_python_cannot_hold_is_found_by_the_survey(tmp_path: Path) -> None:
    days = pa.array([0] * 1000 + [10**8], pa.date32())
    table = pa.Table.from_pylist([row(i) for i in range(1001)]).append_column("day", days)
    pq.write_table(table, tmp_path / "a.parquet")
    fails(DataError, "a.parquet", "row 512 of the corpus", "'day'", data=tmp_path / "a.parquet")


def test_json_text_of_others_that_cannot_be_stored_stays_text(tmp_path: Path) -> None:
    texts = ['{"a": "\\ud800"}', "[" * 300 + "]" * 300, "7" * 5000, '{"a": 1}', "null"]
    field = pa.field("x", pa.string(), metadata={"encoding": "json"})
    schema = pa.schema([pa.field("text", pa.string()), field])
    pq.write_table(pa.table({"text": list("abcde"), "x": texts}, schema), tmp_path / "a.parquet")
    rows, trajectories = read(open_corpus(tmp_path / "a.parquet"))
    assert [r["x"] for r in rows] == [*texts[:3], {"a": 1}, None]
    assert {t.refusal for t in trajectories} == {""}


def test_a_stream_with_values_that_cannot_be_stored(loads: dict[str, Any]) -> None:
    def stream() -> Any:
        yield row(0, x="a\ud800", y=None)
        yield row(1, x="b", y=json.loads("[" * 200 + "]" * 200))
        yield row(2, x="c", y=None)

    loads["data"] = datasets.IterableDataset.from_generator(stream)
    rows, trajectories = read(open_corpus("name", SourceOptions(streaming=True)))
    assert [(r["x"], r["y"]) for r in rows] == [("a\ufffd", None), ("b", None), ("c", None)]
    assert [t.refusal for t in trajectories] == ["not_storable", "not_storable", ""]


def test_a_file_whose_name_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "d" / os.fsdecode(b"a\xff.jsonl"), [row(0)])
    corpus = open_corpus(tmp_path / "d")
    assert read(corpus)[0] == [row(0)]
    assert corpus.fingerprint["sources"][0]["file"] == "a\\udcff.jsonl"
    json.dumps(corpus.fingerprint, ensure_ascii=False).encode()
    path.rename(path.with_suffix(".parquet"))
    fails(DataError, "as Parquet", data=tmp_path / "d")


@pytest.mark.parametrize(
    ("tail", "words"),
    [(b"", "ends inside the list"), (b",]", "comma"), (b"] x", "after")],  # as the message has it
)
def test_a_broken_end_of_a_list_is_named(tail: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"text": "x"}' + tail)
    fails(DataError, str(path), "line 1", words.replace("after", "follows the closing"), data=path)


def test_a_list_larger_than_the_window_reads_like_lines(tmp_path: Path) -> None:
    given_rows = [row(i, note="é\n" * 40_000 * (i % 3), nan=float("nan"), big=10**25 + i) for i in range(60)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(given_rows, indent=1, ensure_ascii=False), encoding="utf-8")
    assert path.stat().st_size > 3 << 20
    rows, _ = read(open_corpus(path), 7)
    assert same(rows, given_rows)
    assert rows[59]["big"] == 10**25 + 59


def test_what_python_reads_and_orjson_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x", "a": NaN, "b": 123456789012345678901234567890, "c": -Infinity}\n')
    rows, _ = read(open_corpus(path))
    assert rows[0]["a"] != rows[0]["a"]
    assert (rows[0]["b"], rows[0]["c"]) == (123456789012345678901234567890, float("-inf"))


def test_a_single_object_over_many_lines_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"rows": [1, 2]}, indent=2))
    fails(DataError, "line 1", "a single object over many lines", data=path)
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps([row(1)], indent=2))
    fails(DataError, "line 1", "one list over many lines; name it .json", data=path)
    (tmp_path / "c.json").write_text("hello")
    fails(DataError, "c.json", "begins with 'hello'", data=tmp_path / "c.json")


def test_damaged_files_are_found_before_anything_is_scored(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "x"}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:-20])
    fails(DataError, "a.jsonl.gz", "to its end", data=tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl.gz").write_bytes(b'{"text": "x"}\n')
    fails(DataError, "b.jsonl.gz", "to its end", data=tmp_path / "b.jsonl.gz")
    whole = tmp_path / "c.parquet"
    pq.write_table(
        pa.table({"text": [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(400)]}), whole
    )
    data = bytearray(whole.read_bytes())
    whole.write_bytes(data[:-30])
    fails(DataError, "c.parquet", "as Parquet", data=whole)
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    whole.write_bytes(data)
    fails(DataError, "c.parquet", "as Parquet", data=whole)
    (tmp_path / "d.parquet").write_bytes(b"")
    fails(DataError, "d.parquet", "as Parquet", data=tmp_path / "d.parquet")


def test_folders_globs_and_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [row(i) for i in range(10)]
    write(tmp_path / "d" / "b" / "2.jsonl", rows[4:6])
    write(tmp_path / "d" / "a.ndjson", rows[:2])
    (tmp_path / "d" / "b" / "1.json").write_text(json.dumps(rows[2:4], indent=1))
    (tmp_path / "d" / "c.jsonl.gz").write_bytes(gzip.compress(b"\n".join(json.dumps(r).encode() for r in rows[6:8])))
    pq.write_table(pa.Table.from_pylist(rows[8:]), tmp_path / "d" / "d.parquet")
    for name in ("README.md", ".hidden.jsonl", ".cache/x.jsonl"):
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_text("not a row")
    corpus = open_corpus(tmp_path / "d")
    assert read(corpus, 3)[0] == rows
    assert [source["file"] for source in corpus.fingerprint["sources"]][:2] == ["a.ndjson", "b/1.json"]
    assert read(open_corpus(f"{tmp_path}/d/**/*"))[0] == rows
    assert read(open_corpus(f"{tmp_path}/d/b/?.json*"))[0] == rows[2:6]
    assert read(open_corpus([tmp_path / "d" / "d.parquet", str(tmp_path / "d" / "b")]))[0] == rows[8:] + rows[2:6]


def test_parquet_columns_keep_their_types_and_disagreeing_files_are_joined(tmp_path: Path) -> None:
    dated = pa.table({"text": ["x"], "day": pa.array([1], pa.date32()), "n": pa.array([3], pa.int16()), "only": ["o"]})
    pq.write_table(dated, tmp_path / "a.parquet")
    corpus = open_corpus(tmp_path / "a.parquet")
    assert corpus.schema.equals(dated.schema)
    assert next(corpus.chunks(5)).table.equals(dated)
    other = pa.table({"text": ["y"], "day": [None], "n": [0.5], "kind": pa.array(["k"]).dictionary_encode()})
    pq.write_table(other, tmp_path / "b.parquet")
    write(tmp_path / "c.jsonl", [{"text": "z", "only": 5, "day": None}])
    rows, _ = read(open_corpus(tmp_path))
    assert [r["n"] for r in rows] == [3, 0.5, None]
    assert [r["only"] for r in rows] == ["o", None, 5]
    assert [r["kind"] for r in rows] == [None, "k", None]
    assert [str(r["day"]) for r in rows] == ["1970-01-02", "None", "None"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("size", [1, 4, 700, 5000])
def test_resuming_and_chunk_size_change_nothing(suffix: str, size: int, tmp_path: Path) -> None:
    # Rows 600 and 1100 repeat earlier ids: one across files, one across blocks of a file.
    count = 40 if size == 1 else 1200
    rows = [row(3 if i in (count // 2, count - 100, count - 1) else i, n=i) for i in range(count)]
    half = count // 2
    for name, part in (("a", rows[:half]), ("b", rows[half:])):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(part), path, row_group_size=70 if name == "a" else 600)
        elif suffix == ".json":
            path.write_text(json.dumps(part))
        else:
            write(path, part)
    corpus = open_corpus(tmp_path)
    everything = read(corpus)
    assert everything[0] == rows
    repeated = [i for i, t in enumerate(everything[1]) if t.refusal == "duplicate_id"]
    assert repeated == [i for i in range(4, count) if rows[i]["id"] == "r3"]
    assert "'r3' belongs to row 3 " in everything[1][repeated[-1]].detail
    assert everything[1][repeated[0]].messages is None
    for start in (0, 1, 5, half - 1, half, half + 1, count - 1, count):
        tail = read(corpus, size, start)
        assert tail == (everything[0][start:], everything[1][start:]), start


def test_rows_without_ids_that_are_identical_are_duplicates(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y"}, {"text": "x"}, {"text": "x"}])
    refusals = [t.refusal for t in read(open_corpus(path), 1)[1]]
    assert refusals == ["", "", "duplicate_id", "duplicate_id"]


def test_limit_counts_over_files_and_nothing_after_it_is_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [row(0), row(1)])
    pq.write_table(pa.Table.from_pylist([row(2), row(3, late=1)]), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "x", "id": "c"}\nbroken\n')
    for limit in (1, 2, 3, 4, 5):
        corpus = open_corpus(tmp_path, SourceOptions(limit=limit))
        rows, trajectories = read(corpus, 2)
        assert len(rows) == len(trajectories) == corpus.n_rows == limit
        assert ("text" in corpus.schema.names) == (limit == 5)
        assert read(corpus, 2, start=limit - 1)[0] == rows[-1:]
    fails(DataError, "c.jsonl", "line 2", data=tmp_path, options=SourceOptions(limit=6))
    with pytest.raises(UsageError, match="--limit is 0"):
        open_corpus(tmp_path, SourceOptions(limit=0))


def test_limit_inside_a_parquet_file(tmp_path: Path) -> None:
    rows = [row(i) for i in range(1700)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for limit in (511, 512, 513, 1100):
        assert read(open_corpus(tmp_path, SourceOptions(limit=limit)))[0] == rows[:limit]


def test_skipped_rows_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus(write(tmp_path / "a.jsonl", [row(i) for i in range(100)]))
    parsed: list[int] = []
    parse = jsonfiles.parse_row

    def counted(path: Path, number: int, line: bytes, first: bool = False) -> jsonfiles.Row:
        parsed.append(number)
        return parse(path, number, line, first)

    monkeypatch.setattr(jsonfiles, "parse_row", counted)
    assert len(read(corpus, 4, 90)[0]) == 10
    assert parsed == list(range(91, 101))


def test_json_text_and_plain_text_of_one_column_are_told_apart(tmp_path: Path) -> None:
    def files(value: Any) -> list[dict[str, Any]]:
        return [{"text": "x", "top": value, "deep": {"in": value}}, {"text": "y", "top": 1, "deep": {"in": 1}}]

    mixed = open_corpus(write(tmp_path / "a.jsonl", files('"quoted"')))
    corpus = through_parquet(mixed, tmp_path / "a.parquet")
    plain = [{"text": "z", "top": "1", "deep": {"in": "2"}}]
    pq.write_table(pa.Table.from_pylist(plain), tmp_path / "b.parquet")
    for order in (("a", "b"), ("b", "a")):
        corpus = open_corpus([tmp_path / f"{name}.parquet" for name in order])
        parts = {"a": files('"quoted"'), "b": plain}
        assert read(corpus)[0] == parts[order[0]] + parts[order[1]]


def test_values_deeper_than_parquet_readers_go(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    corpus = open_corpus(write(tmp_path / "a.jsonl", [{"text": "x", "deep": deep}]))
    rows, trajectories = read(corpus)
    assert rows == [{"text": "x", "deep": deep}]
    assert read(through_parquet(corpus, tmp_path / "x.parquet")) == (rows, trajectories)


def test_fingerprint_follows_content_and_not_place(tmp_path: Path) -> None:
    paths = {"a.jsonl": [row(0), row(1)], "s/b.jsonl": [row(2)]}
    for name, rows in paths.items():
        write(tmp_path / "one" / name, rows)
    before = open_corpus(tmp_path / "one").fingerprint
    (tmp_path / "one").rename(tmp_path / "two")
    assert open_corpus(tmp_path / "two").fingerprint == before
    assert json.loads(json.dumps(before)) == before
    changed = tmp_path / "two" / "s" / "b.jsonl"
    changed.write_bytes(changed.read_bytes().replace(b"What", b"Whit"))
    assert open_corpus(tmp_path / "two").fingerprint != before
    limited = open_corpus(tmp_path / "two", SourceOptions(limit=1)).fingerprint
    assert limited != open_corpus(tmp_path / "two", SourceOptions(limit=2)).fingerprint


def test_a_file_changed_after_the_survey_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(0)])
    corpus = open_corpus(path)
    write(path, [row(0), row(1)])
    with pytest.raises(DataError, match="was changed while"):
        list(corpus.chunks(1))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("rows", [600, 1500], ids=["cut short", "other rows"])
def test_a_file_changed_while_it_is_read_is_noticed(name: str, rows: int, tmp_path: Path) -> None:
    """Rows before the change are those that were surveyed; none after it is given out."""

    def fill(count: int, first: int) -> None:
        made = [row(first + number) for number in range(count)]
        if name.endswith(".jsonl"):
            write(tmp_path / name, made)
        else:
            pq.write_table(pa.Table.from_pylist(made), tmp_path / name)

    fill(1500, 0)
    expected = [each.id for chunk in open_corpus(tmp_path / name).chunks(500) for each in chunk.trajectories]
    chunks = open_corpus(tmp_path / name).chunks(500)
    seen = [each.id for each in next(chunks).trajectories]
    fill(rows, 10_000)
    with pytest.raises(DataError, match="was changed while"):
        seen += [each.id for chunk in chunks for each in chunk.trajectories]
    assert seen == expected[: len(seen)]


def test_paths_that_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "d" / "rows.jsonl", [row(0)])
    fails(
        UsageError,
        "rows.jsonI.jsonl: no such file",
        "Did you mean rows.jsonl?",
        data=file.with_name("rows.jsonI.jsonl"),
    )
    fails(UsageError, "no such file", "does not exist either", data=str(tmp_path / "e" / "rows.jsonl"))
    fails(UsageError, "nothing supported matches", data=f"{tmp_path}/d/*.parquet")
    fails(UsageError, "rows.jsonl: is given twice", data=[file, tmp_path / "d"])
    fails(UsageError, "rows.jsonl: is given twice", data=[f"{tmp_path}/*/*.jsonl", str(tmp_path / "d/../d/rows.jsonl")])
    fails(UsageError, "No data", data=[])
    (tmp_path / "x.xlsx").write_text("a,b")
    fails(UsageError, "x.xlsx", ".parquet", data=tmp_path / "x.xlsx")
    (tmp_path / "empty").mkdir()
    fails(UsageError, "no supported file", data=tmp_path / "empty")
    (tmp_path / "empty" / "a.jsonl").write_text("\n\n")
    fails(UsageError, "no rows", data=tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    fails(UsageError, "no such file", data="./d/other")
    fails(UsageError, "no such file", data=Path("org/name"))


def test_scores_are_no_corpus(tmp_path: Path) -> None:
    path = tmp_path / "scores" / "part-00000.parquet"
    path.parent.mkdir()
    table = pa.table({"text": ["x"]})
    pq.write_table(table.replace_schema_metadata({"trajscore.schema_version": "1"}), path)
    fails(UsageError, "part-00000.parquet", "scores already", data=path)
    (path.parent / "manifest.json").write_text('{"schema_version": 1, "settings": {}, "parts": []}')
    fails(UsageError, "scores: holds scores already", data=tmp_path)


def test_columns_that_do_not_work(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(0, uid="u", empty=None)])
    for fields, words in (
        (FieldNames(id="uuid"), "--id-field uuid: no row"),
        (FieldNames(teacher="empty"), "--teacher-field empty: no row"),
        (FieldNames(messages="turns"), "Columns found: id, question, answer, uid, empty"),
    ):
        fails(UsageError, words, data=path, options=SourceOptions(fields=fields))
    assert open_corpus(path, SourceOptions(fields=FieldNames(id="id", teacher="uid"))).n_rows == 1
    write(path, [{"foo": 1, "bar": 2}])
    fails(UsageError, "foo, bar", "--messages-field", "conversations", data=path)
    write(path, [{"foo": 1}, {"text": "x"}])
    assert [t.refusal for t in read(open_corpus(path))[1]] == ["no_known_layout", ""]
    write(path, [{f"k{i}": 1 for i in range(2000)}])
    fails(DataError, "more than 1000 different columns", "a.jsonl", data=path)


def test_chunk_arguments_are_checked(tmp_path: Path) -> None:
    corpus = open_corpus(write(tmp_path / "a.jsonl", [row(0)]))
    for size, start in ((0, 0), (1, -1), (1, 2)):
        with pytest.raises(UsageError):
            corpus.chunks(size, start)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `datasets.load_dataset` gives and what it was asked for; the hub itself is out of reach in tests."""
    state: dict[str, Any] = {}

    def load(*args: Any, **kwargs: Any) -> Any:
        state["asked"] = (args, kwargs)
        if isinstance(state["data"], Exception):
            raise state["data"]
        return state["data"]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "_commit", lambda name, revision: state.get("commit"))
    return state


HUB_ROWS = [row(2 if i == 9 else i, meta={"a": i} if i % 2 else None) for i in range(12)]


def test_a_hub_data_set_reads_like_a_file(loads: dict[str, Any]) -> None:
    loads["data"], loads["commit"] = datasets.Dataset.from_list(HUB_ROWS), "c" * 40
    options = SourceOptions(config_name="main", split="test", revision="v1", limit=11)
    corpus = open_corpus("org/name", options)
    wanted = {"split": "test", "streaming": False, "revision": "c" * 40}
    assert loads["asked"] == (("org/name", "main"), wanted)
    assert corpus.n_rows == 11
    rows, trajectories = read(corpus, 4)
    assert rows == HUB_ROWS[:11]
    assert [t.refusal for t in trajectories].index("duplicate_id") == 9
    assert read(corpus, 4, 5) == (rows[5:], trajectories[5:])
    source = json.loads(json.dumps(corpus.fingerprint))["sources"][0]
    assert (source["hub"], source["config_name"], source["split"]) == ("org/name", "main", "test")
    assert source["revision"] == "c" * 40


@pytest.mark.parametrize("declared", [True, False])
def test_a_streamed_hub_data_set(declared: bool, loads: dict[str, Any]) -> None:
    if declared:
        loads["data"] = datasets.Dataset.from_list(HUB_ROWS).to_iterable_dataset()
    else:
        loads["data"] = datasets.IterableDataset.from_generator(lambda: iter(HUB_ROWS))
    corpus = open_corpus("name", SourceOptions(streaming=True, limit=11))
    assert corpus.n_rows is None
    rows, trajectories = read(corpus, 4)
    assert rows == HUB_ROWS[:11]
    assert [i for i, t in enumerate(trajectories) if t.refusal] == [9]
    assert read(corpus, 4, 5) == (rows[5:], trajectories[5:])
    assert corpus.fingerprint != open_corpus("name", SourceOptions(streaming=True, limit=10)).fingerprint


def test_a_stream_that_breaks_off_or_changes_says_where(loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_ROWS", 2)

    def lost() -> Any:
        yield from HUB_ROWS[:4]
        raise ConnectionError("gone")

    loads["data"] = datasets.IterableDataset.from_generator(lost)
    corpus = open_corpus("org/name", SourceOptions(streaming=True))
    with pytest.raises(DataError, match="broke off after row 4: ConnectionError: gone"):
        read(corpus)
    rows = [*HUB_ROWS[:4], row(5, new=1)]
    loads["data"] = datasets.IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(DataError, match=r"row 4 of the corpus[^$]*Column 'new' holds 1"):
        read(open_corpus("org/name", SourceOptions(streaming=True)))


def test_hub_errors(loads: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads["data"] = FileNotFoundError("Dataset 'org/name' doesn't exist")
    fails(UsageError, "org/name", "doesn't exist", "--split", data="org/name")
    loads["data"] = datasets.Dataset.from_list([{"foo": 1}]).to_iterable_dataset()
    fails(UsageError, "foo", data="org/name", options=SourceOptions(streaming=True))
    file = write(tmp_path / "a.jsonl", [row(0)])
    fails(UsageError, "--streaming", data=["org/name", file], options=SourceOptions(streaming=True))
    fails(UsageError, "org/name: is given twice", data=["org/name", "org/name"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trajscore-toolkit\[hf\]'"):
        open_corpus("org/name")


def test_a_branch_is_pinned_to_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def dataset_info(self, name: str, revision: str | None, timeout: float) -> Any:
            if revision == "gone":
                raise ConnectionError
            return SimpleNamespace(sha=f"{name}@{revision}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert hub._commit("org/name", "main") == "org/name@main"
    assert hub._commit("org/name", "gone") is None


def test_options_of_hub_ids_are_not_ignored_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_corpus(write(tmp_path / "a.jsonl", [row(0)]), SourceOptions(split="test", config_name="x"))
    assert "--split" in caplog.text
    assert "--config-name" in caplog.text


def test_the_survey_remembers_little_more_than_eight_bytes_per_row(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = write(tmp_path / f"{count}.jsonl", [row(i, note="x" * 200) for i in range(count)])
        tracemalloc.start()
        open_corpus(path)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(600)
    assert peak(9000) - peak(3000) < 6000 * 60


def test_reading_loads_nothing_heavy() -> None:
    code = "import sys, json, trajscore.corpus\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "trajscore.corpus.reading" in loaded
    assert not {"torch", "transformers", "datasets"} & loaded


def test_where_files_begin(tmp_path: Path) -> None:
    """In trajectories, of which a row may hold several."""
    for name, counts in (("a", [2, 1]), ("b", [1]), ("c", [3])):
        rows = [{"prompt": f"{name}{i}", "responses": ["x"] * n} for i, n in enumerate(counts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = open_corpus(tmp_path)
    assert (corpus.n_rows, corpus.file_starts) == (7, [0, 3, 4])
    assert open_corpus(tmp_path, SourceOptions(limit=2)).file_starts == [0]


class TestParts:
    """Chunks by number, as shards and workers read them."""

    def _corpus(self, folder: Path) -> Corpus:
        """4,000 rows over files of every kind, with a byte order mark and empty lines."""
        rows = [row(i) for i in range(4000)]
        lines = write(folder / "a.jsonl", rows[:1700])
        text = lines.read_text().splitlines()
        lines.write_text("\ufeff" + "\n\n".join(text[:800]) + "\n" + "\r\n".join(text[800:]), "utf-8")
        packed = b"".join(json.dumps(r).encode() + b"\n" for r in rows[1700:2300])
        (folder / "b.jsonl.gz").write_bytes(gzip.compress(packed))
        (folder / "c.json").write_text(json.dumps(rows[2300:3000]))
        pq.write_table(pa.Table.from_pylist(rows[3000:]), folder / "d.parquet", row_group_size=300)
        return open_corpus(folder)

    @pytest.mark.parametrize("numbers", [[0], [3, 4, 9], [17, 18, 19, 20, 21, 22, 23], [30, 39], range(40), []])
    def test_they_are_the_chunks_of_those_numbers(self, tmp_path: Path, numbers: list[int]) -> None:
        corpus = self._corpus(tmp_path)
        every = {chunk.first_row: chunk for chunk in corpus.chunks(100)}
        found = list(corpus.parts(100, numbers))
        assert [chunk.first_row for chunk in found] == [100 * number for number in numbers]
        for chunk in found:
            assert chunk.table.equals(every[chunk.first_row].table)
            assert chunk.trajectories == every[chunk.first_row].trajectories

    def test_a_file_of_lines_is_entered_in_the_middle(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        corpus = open_corpus(write(tmp_path / "a.jsonl", [row(i) for i in range(5000)]))
        real, read_lines = jsonfiles._guarded, list[int]()

        def counted(path: Path, function: Any, *size: int) -> bytes:
            read_lines.append(1)
            return real(path, function, *size)

        monkeypatch.setattr(jsonfiles, "_guarded", counted)
        (chunk,) = corpus.parts(10, [430])
        assert [each.id for each in chunk.trajectories] == [f"r{i}" for i in range(4300, 4310)]
        assert len(read_lines) < 600, "not the 4,300 lines before"

    def test_line_numbers_of_errors_are_those_of_the_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [row(i) for i in range(2000)])
        marks = jsonfiles.LineMarks(512)
        assert len(list(jsonfiles.read_lines(path, hashlib.sha256(), 0, marks))) == 2000
        lines = path.read_bytes().splitlines(keepends=True)
        lines[1799] = b"x" * (len(lines[1799]) - 1) + b"\n"
        path.write_bytes(b"".join(lines))
        with pytest.raises(DataError, match="line 1800:"):
            list(jsonfiles.read_lines(path, None, 1700, marks))
