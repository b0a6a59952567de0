"""Every type of a column and every form of a file: the same rows come out, and other tools read what is kept."""

from __future__ import annotations

import csv
import decimal
import gzip
import io
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trajscore.corpus import SourceOptions, Trajectory, decoded_rows, open_corpus
from trajscore.errors import DataError, UsageError

D = decimal.Decimal
UUIDS = [uuid.UUID(int=1), uuid.UUID(int=2)]


def of(values: list[Any], dtype: pa.DataType) -> pa.Array:
    return pa.array(values, dtype)


def extension(values: list[Any], dtype: Any) -> pa.Array:
    return pa.ExtensionArray.from_storage(dtype, pa.array(values, dtype.storage_type))


# name -> a column of two values, and what is kept of them.
COLUMNS: dict[str, tuple[pa.Array, list[Any]]] = {
    "string_view": (of(["a", None], pa.string_view()), ["a", None]),
    "binary_view": (of([b"a", None], pa.binary_view()), [b"a", None]),
    "list_view": (of([["a"], ["b", "c"]], pa.list_view(pa.string_view())), [["a"], ["b", "c"]]),
    "large_list_view": (of([[1], None], pa.large_list_view(pa.int64())), [[1], None]),
    "struct of views": (of([{"x": "a"}, None], pa.struct([("x", pa.string_view())])), [{"x": "a"}, None]),
    "decimal256": (of([D("1.25"), None], pa.decimal256(20, 2)), [D("1.25"), None]),
    "long decimal256": (of([D("1.25"), None], pa.decimal256(60, 2)), ["1.25", None]),
    "decimal32": (of([D("1.25"), None], pa.decimal32(5, 2)), [D("1.25"), None]),
    "uuid": (extension([each.bytes for each in UUIDS], pa.uuid()), [each.bytes for each in UUIDS]),
    "json": (extension(['{"a":1}', None], pa.json_()), ['{"a":1}', None]),
    "float16": (of([1.5, None], pa.float16()), [1.5, None]),
    "dictionary of views": (of(["a", "a"], pa.string_view()).dictionary_encode(), ["a", "a"]),
    "fixed list of views": (of([["a"], ["b"]], pa.list_(pa.string_view(), 1)), [["a"], ["b"]]),
    "run ends": (pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(["a"])), ["a", "a"]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_any_type_is_kept_so_that_all_readers_take_it(name: str, tmp_path: Path) -> None:
    column, wanted = COLUMNS[name]
    table = pa.table({"prompt": ["p", "q"], "response": ["x", "y"], "extra": column})
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    corpus = open_corpus(path)
    (chunk,) = corpus.chunks(10)
    assert [each["extra"] for each in decoded_rows(chunk.table)] == wanted
    assert [(each.messages or [])[1]["content"] for each in chunk.trajectories] == ["x", "y"]
    kept = tmp_path / "kept.parquet"
    pq.write_table(chunk.table, kept)
    assert pl.read_parquet(kept)["response"].to_list() == ["x", "y"]
    assert pq.read_table(kept).to_pandas()["response"].tolist() == ["x", "y"]
    assert datasets.Dataset(pq.read_table(kept)).to_dict()["response"] == ["x", "y"]


@pytest.mark.parametrize("kind", ["string_view", "list_view"])
def test_text_in_views_is_read_as_text(kind: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "x"}]
    turn = pa.struct([("role", pa.string_view()), ("content", pa.string_view())])
    column = (
        pa.array([json.dumps(turns)], pa.string_view())
        if kind == "string_view"
        else pa.array([turns], pa.list_view(turn))
    )
    pq.write_table(pa.table({"messages": column}), tmp_path / "rows.parquet")
    (chunk,) = open_corpus(tmp_path / "rows.parquet").chunks(10)
    assert chunk.trajectories[0].messages == turns


def test_a_type_that_no_file_of_others_holds_is_refused_by_name(tmp_path: Path) -> None:
    union = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])
    table = pa.table({"prompt": ["p"], "response": ["x"], "extra": union})
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="dense_union"):
        open_corpus(path)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1.0, 0.0], [True, False]),
        ([True, None], [True, None]),
        ([1, -1], [True, None]),
        (["yes", "wrong"], [True, False]),
        ([0.7, 0.2], None),
        ([[True], [False]], None),
    ],
)
def test_correct_in_any_form(values: list[Any], wanted: list[bool | None] | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["p", "q"], "response": ["x", "y"], "correct": values}), path)
    if wanted is None:
        with pytest.raises(UsageError, match="correct"):
            open_corpus(path)
        return
    (chunk,) = open_corpus(path).chunks(10)
    assert [each.correct for each in chunk.trajectories] == wanted


ROWS = [
    {"id": f"r{i}", "prompt": f'q{i}\nä, "b"', "response": f"007{i}", "teacher": "t" if i else None} for i in range(3)
]


def lines() -> bytes:
    return "".join(json.dumps(each) + "\n" for each in ROWS).encode()


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS)


def arrow_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table().schema) as writer:
        writer.write_table(table())


def commas(path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(ROWS)
    path.write_bytes(text.getvalue().encode())


def saved(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(path)


def saved_splits(path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(path)


def snapshot(path: Path) -> None:
    """As the hub's downloads lie: splits in shards, and files that describe them."""
    (path / "data").mkdir(parents=True)
    for i in range(2):
        part = table().slice(0, 2) if i == 0 else table().slice(2)
        pq.write_table(part, path / "data" / f"train-{i:05d}-of-00002.parquet")
    pq.write_table(table().slice(0, 1), path / "data" / "test-00000-of-00001.parquet")
    (path / "README.md").write_text("# card")
    (path / "dataset_infos.json").write_text('{"default": {"prompt": "no row"}}')
    (path / ".cache").mkdir()
    (path / ".cache" / "a.jsonl").write_text("{}")


FORMS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_bytes(lines()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines())),
    "a.jsonl.zst": lambda path: path.write_bytes(pa.compress(lines(), "zstd", asbytes=True)),
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.parquet": lambda path: pq.write_table(table(), path),
    "a.arrow": arrow_stream,
    "a.csv": commas,
    "saved": saved,
    "saved splits": saved_splits,
    "snapshot": snapshot,
}


def read(path: Path, split: str | None = None) -> Iterator[Trajectory]:
    for chunk in open_corpus(path, SourceOptions(split=split)).chunks(2):
        yield from chunk.trajectories


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file_holds_the_same_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    FORMS[name](path)
    split = "train" if name in ("saved splits", "snapshot") else None
    found = [(each.id, each.teacher, [turn["content"] for turn in each.messages or []]) for each in read(path, split)]
    assert found == [(each["id"], each["teacher"], [each["prompt"], each["response"]]) for each in ROWS]
    if split:
        with pytest.raises(UsageError, match="--split train"):
            open_corpus(path)
        assert [each.id for each in read(path, "test")] == ["r0"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_two_columns_of_one_name_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    doubled = pa.Table.from_arrays([pa.array(["q"])] * 3, names=["prompt", "prompt", "response"])
    if kind == "csv":
        path.write_text("prompt,prompt,response\nq,q,q\n")
    elif kind == "parquet":
        pq.write_table(doubled, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, doubled.schema) as writer:
            writer.write_table(doubled)
    with pytest.raises(DataError, match=r"a\..* has two columns named 'prompt'"):
        open_corpus(path)
