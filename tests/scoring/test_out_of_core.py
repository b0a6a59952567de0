"""Data larger than memory: parts that a condition or a selection rules out are not read, lists and row groups stay within
Arrow's limits, and Parquet files pass page by page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.paths import MODELS
from tests.helpers.score_tables import random_rows, table, trajectory, with_every_column, write_folder
from trajscore import mask, scan, score, select
from trajscore.corpus import open_corpus, reading
from trajscore.errors import DataError, UsageError
from trajscore.io import parquet
from trajscore.io.parquet import open_pages, row_group_rows
from trajscore.schema import OK
from trajscore.scores.reading_parts import ROW, planned_parts
from trajscore.scores.source import open_scores
from trajscore.scoring import part_table
from trajscore.scoring.part_table import chunks


def _spoil(part: Path, column: str) -> None:
    """Overwrite a column's pages, so that reading a value of it fails and nothing else does."""
    found = pq.read_metadata(part).row_group(0)
    data = bytearray(part.read_bytes())
    for number in range(found.num_columns):
        each = found.column(number)
        if each.path_in_schema.partition(".")[0] == column:
            start = min(each.data_page_offset, each.dictionary_page_offset or each.data_page_offset)
            data[start : start + each.total_compressed_size] = b"\xff" * each.total_compressed_size
    part.write_bytes(data)


def _folder(path: Path) -> Path:
    """Three parts of two rows each, one teacher per part."""
    rows = [trajectory(n, [n + 2, 3], [1.0, 2.0], teacher="ABC"[n // 2], prompt_id=str(n)) for n in range(6)]
    return write_folder(path, rows, part_rows=2)


@pytest.mark.parametrize(
    "where",
    [
        "teacher = 'B'",
        "NOT (teacher <> 'B')",
        "id LIKE '%2' OR id LIKE '%3'",
        "rsr > 0 AND teacher = 'B' AND n_tokens = 2",
    ],
)
def test_parts_that_the_condition_rules_out_are_not_read(tmp_path: Path, where: str) -> None:
    folder = _folder(tmp_path / "s")
    for number in (0, 2):
        _spoil(folder / f"part-0000{number}.parquet", "student_rank")
        _spoil(folder / f"part-0000{number}.parquet", "messages")
    with pytest.raises(DataError):
        select(folder)
    selection = select(folder, where=where, out=tmp_path / "kept.parquet", decisions=tmp_path / "d.parquet")
    assert pl.read_parquet(tmp_path / "kept.parquet")["id"].to_list() == ["id-0002", "id-0003"]
    assert (selection.rows_in, selection.rows_kept, selection.dropped) == (6, 2, {"where": 4})
    lines = pl.read_parquet(tmp_path / "d.parquet")
    assert lines["id"].to_list() == [f"id-000{n}" for n in range(6)]
    assert lines["rsr"].is_null().to_list() == [True, True, False, False, True, True]


def test_parts_without_a_selected_row_are_not_masked(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s")
    select(folder, where="teacher = 'B'", out=tmp_path / "kept.parquet")
    expected = mask(folder, "entropy", keep=0.5, selected=tmp_path / "kept.parquet", out=tmp_path / "m.parquet")
    for number in (0, 2):
        _spoil(folder / f"part-0000{number}.parquet", "student_entropy")
    again = mask(folder, "entropy", keep=0.5, selected=tmp_path / "kept.parquet", out=tmp_path / "again.parquet")
    assert (again.tokens, again.dropped) == (expected.tokens, expected.dropped)
    assert pl.read_parquet(tmp_path / "again.parquet").equals(pl.read_parquet(tmp_path / "m.parquet"))


@pytest.mark.parametrize(
    ("where", "stored", "measured"),
    [
        ("teacher = 'A' AND rsr < 60", pl.col("teacher") == "A", pl.col("rsr") < 60),
        ("rsr < 60 AND correct AND n_tokens > 9", pl.col("correct") & (pl.col("n_tokens") > 9), pl.col("rsr") < 60),
        ("teacher = 'A' OR rsr < 60", pl.lit(True), (pl.col("teacher") == "A") | (pl.col("rsr") < 60)),
        (
            "correct IS NULL AND teacher IS NULL",
            pl.col("correct").is_null() & pl.col("teacher").is_null(),
            pl.lit(True),
        ),
    ],
)
def test_a_condition_gives_what_the_rows_that_meet_it_give(
    tmp_path: Path, where: str, stored: pl.Expr, measured: pl.Expr
) -> None:
    rows = random_rows(90, seed=4)
    folder = write_folder(tmp_path / "s", rows, part_rows=7)
    selection = select(folder, per_prompt=1, where=where)
    every = select(folder).decisions.join(scan(folder).select("id", "correct", "n_tokens").collect(), on="id")
    admitted = every.filter(stored)
    meets = set(admitted.filter(measured)["id"])
    alone = select(write_folder(tmp_path / "t", [row for row in rows if row["id"] in meets]), per_prompt=1)
    assert set(selection.decisions.filter("kept")["id"]) == set(alone.decisions.filter("kept")["id"]) != set()
    assert selection.after == pytest.approx(alone.after, rel=1e-12)
    assert selection.rows_in == 90 == selection.rows_kept + sum(selection.dropped.values())
    expected = {row["id"]: row["rsr"] for row in admitted.to_dicts()}
    assert {row["id"]: row["rsr"] for row in selection.decisions.to_dicts() if row["id"] in expected} == expected
    assert selection.decisions.filter(~pl.col("id").is_in(list(expected)))["rsr"].null_count() == 90 - len(expected)
    # A row that the stored columns rule out is dropped by the condition, whether or not a metric were defined.
    steps = dict(selection.decisions.select("id", "step").iter_rows())
    assert {steps[row["id"]] for row in rows if row["id"] not in expected and row["status"] == OK} <= {"where"}
    frame = select(scan(folder), per_prompt=1, where=where)
    assert frame.decisions.equals(selection.decisions)


def test_a_condition_that_no_row_meets_reads_no_token(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s")
    _spoil(folder / "part-00001.parquet", "student_rank")
    for scores in (folder, scan(folder)):
        selection = select(scores, where="teacher = 'Z' AND rsr < 9", out=tmp_path / "kept.parquet")
        assert (selection.rows_kept, selection.dropped) == (0, {"where": 6})
        assert pl.read_parquet(tmp_path / "kept.parquet").height == 0
    assert selection.before == {"rsr": None}
    empty = select(write_folder(tmp_path / "none", []), where="teacher = 'Z'")
    assert (empty.rows_in, empty.dropped) == (0, {})


def test_a_metric_that_compares_the_rows_of_a_prompt_sees_all_of_them(tmp_path: Path) -> None:
    rows = with_every_column(random_rows(60, seed=2))
    folder = write_folder(tmp_path / "s", rows, part_rows=7)
    every, some = (select(folder, "lark", where=where).decisions for where in (None, "teacher = 'A'"))
    assert some["lark"].equals(every["lark"])
    assert some.filter("kept").height < every.filter("kept").height


def test_folders_of_different_columns_go_together(tmp_path: Path) -> None:
    rows = random_rows(40, seed=3)
    one = write_folder(tmp_path / "one", rows[:20])
    two = write_folder(tmp_path / "two", with_every_column(rows[20:]))
    whole = select([one, two], ["rsr", "kl_student_teacher"], order="descending", where="rsr > 0 AND id >= 'id-0015'")
    single = select(two, ["rsr", "kl_student_teacher"], order="descending", where="rsr > 0")
    assert set(single.decisions.filter("kept")["id"]) == {
        n for n in whole.decisions.filter("kept")["id"] if n >= "id-0020"
    }
    assert whole.decisions.filter(pl.col("id") < "id-0015")["rsr"].null_count() == 15


@pytest.mark.parametrize("limit", [1, 4, 5, 2**31])
def test_chunks_hold_every_row_once_within_the_limit(limit: int) -> None:
    lengths = np.random.default_rng(0).integers(0, 5, 60)
    parts = list(chunks(lengths, limit))
    assert [row for part in parts for row in range(60)[part]] == list(range(60))
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        assert lengths[part].sum() <= limit or part.stop - part.start == 1
        assert after is None or lengths[part].sum() + lengths[after.start] > limit


def test_chunks_beyond_what_32_bits_count() -> None:
    # 100,000 rows of 32,768 tokens: 3.3e9 elements, more than Arrow's offsets and numpy's int32 reach.
    parts = list(chunks(np.full(100_000, 32_768), 2**31 - 1))
    assert [(part.start, part.stop) for part in parts] == [(0, 65_535), (65_535, 100_000)]


def test_a_part_of_many_chunks_reads_like_one_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [{"id": str(n), "text": "one two. three " * (n % 7)} for n in range(40)]
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in texts))
    student = MODELS / "student"
    score(corpus, student, tmp_path / "few", max_refused=1)
    monkeypatch.setattr(part_table, "CHUNK_ELEMENTS", 50)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 3000)
    score(corpus, student, tmp_path / "many", max_refused=1)
    few, many = (tmp_path / name / "part-00000.parquet" for name in ("few", "many"))
    assert pq.read_metadata(few).num_row_groups == 1
    assert pq.read_metadata(many).num_row_groups > 3
    assert pq.read_table(many).equals(pq.read_table(few))
    assert pl.read_parquet(many).equals(pl.read_parquet(few))
    selected = [select(tmp_path / name, per_prompt=1, where="id > '2'").decisions for name in ("few", "many")]
    assert selected[0].equals(selected[1])


def test_row_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(random_rows(50, seed=6))
    monkeypatch.setattr(parquet, "GROUP_BYTES", rows.nbytes // 5)
    size = row_group_rows(rows)
    assert 1 < size < 25
    assert max(rows.slice(first, size).nbytes for first in range(0, 50, size)) <= rows.nbytes // 5
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1)
    assert row_group_rows(rows) == 1
    assert row_group_rows(rows.slice(0, 0)) == 1


@pytest.mark.slow
def test_a_list_column_beyond_arrows_offsets_is_made_in_chunks() -> None:
    # 2.2e9 elements of one byte, from rows that share their values.
    values = np.zeros(2**20, np.uint8)
    rows = [values] * 2100
    column = part_table._lists(pa.list_(pa.uint8()), rows)
    assert len(column) == 2100
    assert sum(len(chunk.values) for chunk in column.chunks) == 2100 * 2**20 > 2**31
    assert len(column[2099]) == 2**20


def test_part_rows_that_memory_cannot_hold_are_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(n), "text": "x" * 1000}) + "\n" for n in range(3000)))
    opened = open_corpus(corpus)
    monkeypatch.setattr(reading, "MAX_CHUNK_BYTES", 1_200_000)
    assert sum(chunk.table.num_rows for chunk in opened.chunks(600)) == 3000
    with pytest.raises(UsageError, match=r"--part-rows 2500: the 1536 rows from row 0 on .* 1 MiB") as caught:
        next(opened.chunks(2500))
    assert "768" in caught.value.hint


_CHILD = """
import sys
import pyarrow as pa
from trajscore.corpus import open_corpus
for chunk in open_corpus(sys.argv[1]).chunks(100):
    del chunk
print(pa.default_memory_pool().max_memory())
"""


@pytest.mark.parametrize("group", [100, 10**6], ids=["row groups", "one row group"])
def test_a_parquet_corpus_passes_in_the_memory_of_a_few_blocks(tmp_path: Path, group: int) -> None:
    draw = np.random.default_rng(0)
    texts = [draw.bytes(8000).hex() for _ in range(8000)]
    corpus = tmp_path / "c.parquet"
    rows = pa.table({"id": [str(n) for n in range(8000)], "text": texts})
    pq.write_table(rows, corpus, row_group_size=group)
    del texts, rows
    done = subprocess.run([sys.executable, "-c", _CHILD, str(corpus)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < corpus.stat().st_size * 2 / 3


def test_pages_hold_what_the_file_holds(tmp_path: Path) -> None:
    rows = table(random_rows(50, seed=8))
    pq.write_table(rows, tmp_path / "t.parquet", row_group_size=20)
    with open_pages(tmp_path / "t.parquet") as file:
        assert pa.Table.from_batches(file.iter_batches(batch_size=7)).equals(pq.read_table(tmp_path / "t.parquet"))


def test_counts_of_tokens_do_not_wrap_around(tmp_path: Path) -> None:
    rows = [trajectory(n, [2], [1.0], prompt_id="p", n_tokens=2**31) for n in range(3)]
    selection = select(write_folder(tmp_path / "s", rows), max_tokens=2**32, explain="id-0002")
    assert selection.explanation is not None
    assert f"with {2**32} tokens" in selection.explanation["reason"]


def test_each_part_is_joined_with_its_own_rows_of_a_plan(tmp_path: Path) -> None:
    """Joined with the whole plan, every part would cost as much as all rows: of five million, a fifth of a second."""
    source = open_scores(_folder(tmp_path / "s"))
    plan = pl.DataFrame({ROW: pl.Series([1, 4, 5], dtype=pl.UInt32), "weight": [0.1, 0.4, 0.5]})
    pairs = [(part.select(ROW).collect()[ROW].to_list(), rows.rows()) for part, rows in planned_parts(source, plan)]
    assert pairs == [([0, 1], [(1, 0.1)]), ([4, 5], [(4, 0.4), (5, 0.5)])]
    ((_, whole),) = planned_parts(open_scores(scan(tmp_path / "s")), plan)
    assert whole.equals(plan)
