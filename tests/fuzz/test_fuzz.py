"""No input makes a reader fail badly: an error is ours and says where, or every row is there, in order, scored or refused.

`make fuzz` draws new examples, many times as many.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import trajscore as ts
from tests.fuzz.inputs import (
    FILES,
    ROWS,
    Spelt,
    careless_tables,
    examples,
    is_storable,
    odd_tables,
    written,
)
from tests.helpers.paths import MODELS
from trajscore.corpus import Corpus, Trajectory, decoded_rows, open_corpus
from trajscore.errors import TrajscoreError
from trajscore.rendering.renderer import Renderer
from trajscore.schema import OK, STATUSES
from trajscore.scoring.part_table import part_table
from trajscore.scoring.rows import ScoredRow, render


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="trajscore")


@cache
def _renderer(model: str) -> Renderer:
    return Renderer(str(MODELS / model))


def _read(corpus: Corpus, size: int, start: int = 0) -> tuple[list[dict[str, Any]], list[Trajectory]]:
    rows: list[dict[str, Any]] = []
    trajectories: list[Trajectory] = []
    for chunk in corpus.chunks(size, start):
        assert chunk.first_row == start + len(rows)
        assert chunk.table.schema.equals(corpus.schema, check_metadata=True)
        assert 0 < chunk.table.num_rows == len(chunk.trajectories) <= size
        rows += decoded_rows(chunk.table)
        trajectories += chunk.trajectories
    return rows, trajectories


def _same(one: Any, other: Any) -> bool:
    """JSON equality: NaN equals itself, a key with null is no key, true is not 1, 1 is 1.0."""
    if isinstance(one, Spelt):
        one = json.loads(one.text)
    if isinstance(one, dict) and isinstance(other, dict):
        keys = {key for pair in (one, other) for key, value in pair.items() if value is not None}
        return all(_same(one.get(key), other.get(key)) for key in keys)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    nans = [isinstance(value, float) and math.isnan(value) for value in (one, other)]
    return all(nans) or ((type(one) is type(other) or {type(one), type(other)} == {int, float}) and bool(one == other))


def _scored(corpus: Corpus, folder: Path, model: str) -> tuple[pa.Table, list[str]]:
    """The corpus as the table of one part, written and read back, with everything done but the model; and the statuses."""
    (chunk,) = corpus.chunks(100_000)
    rendered = [render(trajectory, _renderer(model)) for trajectory in chunk.trajectories]
    rows = [ScoredRow(*pair) for pair in zip(chunk.trajectories, rendered, strict=True)]
    path = folder / "part.parquet"
    pq.write_table(part_table(chunk.table, rows), path, compression="zstd", version="2.6")
    assert pl.read_parquet(path).height == len(rows)
    return pq.read_table(path), [each.status for each in rendered]


def _check(
    corpus: Corpus, folder: Path, size: int, start: int, model: str = "student"
) -> tuple[list[dict[str, Any]], list[str]]:
    """All that holds of every corpus that opens; its rows out of the part, and their statuses."""
    rows, trajectories = _read(corpus, 100_000)
    assert len(rows) == len(trajectories) == corpus.n_rows
    start = min(start, len(rows))
    tail = _read(corpus, size, start)
    assert _same(tail[0], rows[start:])
    assert tail[1] == trajectories[start:] or "nan" in repr(trajectories)
    table, statuses = _scored(corpus, folder, model)
    assert set(statuses) <= STATUSES.keys()
    assert statuses.count(OK) + sum(status != OK for status in statuses) == len(rows)
    details = table["status_detail"].to_pylist()
    assert all((detail is None) == (status == OK) for detail, status in zip(details, statuses, strict=True))
    names = table["id"].to_pylist()
    unique = [name for name, status in zip(names, statuses, strict=True) if status != "duplicate_id"]
    assert len(set(unique)) == len(unique)
    assert table.column_names[: len(corpus.schema.names)] == corpus.schema.names
    return decoded_rows(table.select(corpus.schema.names)), statuses


def _try_open(path: Path) -> Corpus | None:
    """The corpus; None where it is refused with an error that says which file and what to do."""
    with contextlib.suppress(TrajscoreError):
        return open_corpus(path)
    with pytest.raises(TrajscoreError) as caught:
        open_corpus(path)
    assert caught.value.hint
    assert str(path) in caught.value.problem or "corpus" in caught.value.problem
    return None


CUTS = {"size": st.integers(1, 4), "start": st.integers(0, 5)}


@examples(100)
@given(file=FILES, **CUTS)
def test_any_bytes(file: tuple[str, bytes], size: int, start: int, tmp_path: Path) -> None:
    suffix, data = file
    path = tmp_path / f"c{suffix}"
    path.write_bytes(data)
    corpus = _try_open(path)
    if corpus is not None:
        _check(corpus, tmp_path, size, start)


_SCORABLE = [{"id": f"fine {i}", "question": f"{i}?", "answer": f"It is {i}."} for i in range(2)]


def _graded(row: dict[str, Any]) -> dict[str, Any]:
    """The row without a `correct` that says neither right nor wrong, which ends a run with a message."""
    grade = row.get("correct")
    return row if grade is None or isinstance(grade, bool) else {k: v for k, v in row.items() if k != "correct"}


# No shrinking: each try is a run of the model.
@settings(examples(3), phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(rows=st.lists(ROWS, min_size=4, max_size=6).map(lambda lists: [_graded(row) for rows in lists for row in rows]))
def test_scoring_loses_no_row(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(written([*_SCORABLE, *rows], ".jsonl"))
    out = tmp_path / "scores"
    options: dict[str, Any] = {"engine": "hf", "max_model_len": 256, "part_rows": 7, "overwrite": True}
    summary = ts.score(path, student=MODELS / "student", out=out, **options)
    assert summary.rows == len(rows) + 2 == summary.scored + sum(summary.refused.values())
    frame = pl.read_parquet(out / "*.parquet")
    assert frame.height == summary.rows
    assert frame["status"].to_list().count(OK) == summary.scored >= 2
    refused = frame.filter(pl.col("status") != OK)
    assert refused["status_detail"].null_count() == 0
    assert set(refused["status"]) == summary.refused.keys() <= STATUSES.keys()
    kept = ts.select(out, metric="rsr", out=tmp_path / "kept.jsonl", decisions=tmp_path / "decisions.jsonl")
    assert kept.rows_in == summary.rows
    decisions = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_bytes().splitlines()]
    assert len(decisions) == summary.rows
    lines = (tmp_path / "kept.jsonl").read_bytes().splitlines()
    assert len([json.loads(line) for line in lines]) == sum(each["kept"] for each in decisions)


OURS = ("id", "prompt_id", "teacher")


@examples(20)
@given(
    rows=ROWS,
    suffix=st.sampled_from([".jsonl", ".json", ".jsonl.gz"]),
    model=st.sampled_from(["student", "student-llama"]),
    **CUTS,
)
def test_rows_of_every_layout_gone_wrong(
    rows: list[dict[str, Any]], suffix: str, model: str, size: int, start: int, tmp_path: Path
) -> None:
    path = tmp_path / f"c{suffix}"
    path.write_bytes(written(rows, suffix))
    corpus = _try_open(path)
    if corpus is None:
        return
    back, statuses = _check(corpus, tmp_path, size, start, model)
    assert len(back) == len(rows)
    for row, stored, status in zip(rows, back, statuses, strict=True):
        if is_storable(row):
            assert status != "not_storable"
            assert _same(
                {k: v for k, v in row.items() if k not in OURS}, {k: v for k, v in stored.items() if k not in OURS}
            )
        else:
            assert status in ("not_storable", "duplicate_id")
            whole = {k: v for k, v in row.items() if is_storable(v) and is_storable(k) and k not in OURS}
            assert _same(whole, {k: stored[k] for k in whole})


@examples(25)
@given(rows=ROWS)
def test_lines_and_lists_read_alike(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    found = []
    for suffix in (".jsonl", ".json"):
        path = tmp_path / f"c{suffix}"
        path.write_bytes(written(rows, suffix))
        corpus = _try_open(path)
        found.append(repr(corpus and (_read(corpus, 3), corpus.schema)))
    assert found[0] == found[1]


@examples(30)
@given(drawn=careless_tables(), **CUTS)
def test_strings_that_are_not_utf8(drawn: tuple[pa.Table, list[bool]], size: int, start: int, tmp_path: Path) -> None:
    table, fine = drawn
    pq.write_table(table, tmp_path / "c.parquet")
    corpus = _try_open(tmp_path / "c.parquet")
    if corpus is None:
        assert all(text is None for text in table["text"].cast(pa.binary()).to_pylist())
        return
    back, statuses = _check(corpus, tmp_path, size, start)
    assert [row["n"] for row in back] == list(range(table.num_rows))
    for number, status in enumerate(statuses):
        assert (status in ("not_storable", "duplicate_id")) >= (not fine[number])
        if fine[number]:
            assert back[number] == table.slice(number, 1).to_pylist()[0]
            assert status != "not_storable"


@examples(60)
@given(table=odd_tables(), **CUTS)
def test_tables_of_odd_types(table: pa.Table, size: int, start: int, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "c.parquet")
    corpus = _try_open(tmp_path / "c.parquet")
    if corpus is not None:
        assert corpus.n_rows == table.num_rows
        _check(corpus, tmp_path, size, start)
