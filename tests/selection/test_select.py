"""`select`: steps, ties, every error, the files written, and the accounting. The policy alone: test_selection_policy.py."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.score_tables import INPUT_FIELDS, random_rows, refused, trajectory, write_folder
from trajscore.errors import DataError, TrajscoreError, UsageError
from trajscore.ranking.report import report
from trajscore.scores import scan
from trajscore.selection.policy import Policy
from trajscore.selection.presets import PRESETS, expand
from trajscore.selection.select import Selection, select

Row = dict[str, Any]


def _folder(path: Path, values: list[tuple[str, str, float]], **changes: Any) -> Path:
    """One single-token row per (id, prompt, rsr)."""
    rows = [
        trajectory(number, [1], [1 / value], id=name, prompt_id=prompt, **changes)
        for number, (name, prompt, value) in enumerate(values)
    ]
    return write_folder(path, rows)


def _kept(selection: Selection) -> list[str]:
    return selection.decisions.filter("kept")["id"].to_list()


def test_lowest_rsr_of_each_prompt(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", [("a", "p", 4.0), ("b", "p", 2.0), ("c", "q", 8.0), ("d", "p", 16.0)])
    selection = select(folder, per_prompt=1)
    assert _kept(selection) == ["b", "c"]
    assert selection.decisions["prompt_rank"].to_list() == [2, 1, 1, 3]
    assert _kept(select(folder, per_prompt=1, order="descending")) == ["c", "d"]
    assert _kept(select(folder, "length", top=1)) == ["a"]


def test_ties_go_to_the_lower_id_as_a_string(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", [("9", "p", 2.0), ("b", "p", 2.0), ("10", "p", 2.0)])
    assert _kept(select(folder, per_prompt=1)) == ["10"]
    assert _kept(select(folder, top=2)) == ["9", "10"]
    assert _kept(select(folder, top=1, order="descending")) == ["10"]


def test_budgets(tmp_path: Path) -> None:
    rows = [trajectory(n, [1] * (n + 1), [1.0 / (n + 1)] * (n + 1)) for n in range(10)]
    folder = write_folder(tmp_path / "s", rows)
    assert len(_kept(select(folder, fraction=0.3))) == 3
    assert len(_kept(select(folder, fraction=0.001))) == 1
    assert len(_kept(select(folder, fraction=1.0))) == 10
    # 1 + 2 + 3 tokens fit in 6 and in 9; the fourth row has 4.
    assert len(_kept(select(folder, max_tokens=6))) == 3
    assert len(_kept(select(folder, max_tokens=9))) == 3
    assert _kept(select(folder, order="descending", max_tokens=9)) == []


def test_fraction_means_its_decimal(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", [trajectory(n, [1], [1.0]) for n in range(100)], part_rows=100)
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert select(folder, fraction=0.29).rows_kept == 29


def test_prefer_correct(tmp_path: Path) -> None:
    rows = [
        trajectory(0, [1], [1.0], prompt_id="p", correct=False),
        trajectory(1, [9], [1.0], prompt_id="p", correct=True),
        trajectory(2, [1], [1.0], prompt_id="q", correct=False),
        trajectory(3, [2], [1.0], prompt_id="q", correct=None),
    ]
    selection = select(write_folder(tmp_path / "s", rows), per_prompt=1, prefer="correct")
    assert selection.decisions["step"].to_list() == ["prefer", "kept", "kept", "per_prompt"]
    assert selection.dropped == {"prefer": 1, "per_prompt": 1}


def test_where_over_columns_and_metrics_that_are_not_asked_for(tmp_path: Path) -> None:
    rows = [trajectory(n, [n + 1], [1.0], teacher=t) for n, t in enumerate(["A", "A", "B", None])]
    folder = write_folder(tmp_path / "s", rows)
    selection = select(folder, where="teacher = 'A' AND rank_unclipped >= 2")
    assert _kept(selection) == ["id-0001"]
    assert selection.frame.collect_schema().names()[-1] == "rsr"
    # Null counts as false, on both sides of a NOT.
    assert select(folder, where="teacher <> 'A'").rows_kept == 1
    assert select(folder, where="id LIKE 'id-000%' AND n_tokens = 1").rows_kept == 4
    assert select(folder, where="true").rows_kept == 4


def test_accounting_and_teachers(tmp_path: Path) -> None:
    rows = random_rows(80, seed=1)
    selection = select(write_folder(tmp_path / "s", rows, part_rows=9), per_prompt=1, top=10)
    assert selection.rows_in == 80 == selection.rows_kept + sum(selection.dropped.values())
    assert selection.dropped["refused:too_long"] == sum(row["status"] == "too_long" for row in rows)
    assert sum(selection.kept_per_teacher.values()) == selection.rows_kept == 10
    assert "(unknown)" in selection.kept_per_teacher
    assert selection.after["rsr"] is not None
    assert selection.before["rsr"] is not None
    assert selection.after["rsr"] < selection.before["rsr"]


def test_deterministic_and_independent_of_parts(tmp_path: Path) -> None:
    rows = random_rows(60, seed=2)
    results = []
    for name, size in (("a", 5), ("b", 60)):
        folder = write_folder(tmp_path / name, rows, part_rows=size)
        select(folder, ["rsr", "entropy"], per_prompt=2, fraction=0.5, out=tmp_path / f"{name}.jsonl")
        results.append((tmp_path / f"{name}.jsonl").read_bytes())
    assert results[0] == results[1]
    assert results[0]


def test_parquet_keeps_columns_types_metadata_and_order(tmp_path: Path) -> None:
    rows = random_rows(50, seed=4)
    folder = write_folder(tmp_path / "s", rows, part_rows=8)
    out = tmp_path / "new" / "kept.parquet"
    selection = select(folder, ["rsr", "length"], top=20, out=out)
    kept = pq.read_table(out)
    assert kept.column_names == [*(field.name for field in INPUT_FIELDS), "rsr", "length"]
    for field in INPUT_FIELDS:
        assert kept.schema.field(field.name).type == field.type
    assert kept.schema.field("extra").metadata == {b"encoding": b"json"}
    assert kept.schema.field("rsr").metadata[b"unit"] == b"1/nats"
    by_id = {row["id"]: row for row in rows}
    assert kept["id"].to_pylist() == _kept(selection) == sorted(_kept(selection))
    for line in kept.to_pylist():
        assert {field.name: line[field.name] for field in INPUT_FIELDS} == {
            field.name: by_id[line["id"]][field.name] for field in INPUT_FIELDS
        }
    frame = selection.frame.collect()
    assert frame.drop("messages").to_dicts() == kept.drop(["messages"]).to_pylist()
    assert not list(tmp_path.rglob("*.tmp"))


def test_jsonl_drops_nested_nulls_and_writes_json_text_as_json(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "line\u2028sep", "tool_calls": [None, "x"]}
    rows = [
        trajectory(
            0, [1], [1.0], messages=[message, {"role": "user", "content": None, "tool_calls": None}], teacher=None
        ),
        trajectory(1, [1], [1.0], extra='{"big": 123456789012345678901234567890,\n "none": null}'),
        trajectory(2, [1], [1.0], extra=None, correct=True),
    ]
    out = tmp_path / "kept.jsonl"
    select(write_folder(tmp_path / "s", rows), out=out)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    assert list(lines[0]) == ["id", "prompt_id", "teacher", "correct", "messages", "extra", "rsr"]
    assert lines[0]["messages"] == [message, {"role": "user", "content": None}]
    assert lines[0]["teacher"] is None
    assert lines[0]["extra"] == {"number": 0, "none": None}
    assert lines[1]["extra"] == {"big": 123456789012345678901234567890, "none": None}
    assert lines[2]["extra"] is None
    assert lines[2]["correct"] is True
    assert lines[2]["rsr"] == 1.0


def test_marked_text_that_is_no_json_stays_text(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", [trajectory(0, [1], [1.0], extra="{oops")])
    select(folder, out=tmp_path / "kept.jsonl")
    assert json.loads((tmp_path / "kept.jsonl").read_text())["extra"] == "{oops"


def test_marks_inside_values_are_honoured(tmp_path: Path) -> None:
    call = pa.struct([pa.field("name", pa.string()), pa.field("arguments", pa.string(), metadata={"encoding": "json"})])
    fields = [pa.field("id", pa.string()), pa.field("calls", pa.list_(call)), pa.field("m", pa.map_(pa.string(), call))]
    value = {"name": None, "arguments": '{"x": [1, null]}'}
    row = trajectory(0, [1], [1.0], calls=[value, None], m=[("k", value), ("none", None)])
    folder = write_folder(tmp_path / "s", [row], input_fields=fields)
    select(folder, out=tmp_path / "kept.jsonl")
    line = json.loads((tmp_path / "kept.jsonl").read_text())
    assert line["calls"] == [{"arguments": {"x": [1, None]}}, None]
    assert line["m"] == {"k": {"arguments": {"x": [1, None]}}, "none": None}
    select(folder, out=tmp_path / "kept.parquet")
    stored = pq.read_table(tmp_path / "kept.parquet")
    assert stored["calls"].to_pylist() == [[value, None]]
    assert stored.schema.field("calls").type.value_field.type.field("arguments").metadata == {b"encoding": b"json"}


def test_json_text_and_plain_text_do_not_become_one_column(tmp_path: Path) -> None:
    plain = [field.remove_metadata() for field in INPUT_FIELDS]
    one = write_folder(tmp_path / "a", [trajectory(0, [1], [1.0])])
    two = write_folder(tmp_path / "b", [trajectory(1, [1], [1.0])], input_fields=plain)
    with pytest.raises(UsageError, match="extra") as caught:
        select([one, two], out=tmp_path / "kept.parquet")
    assert "one by one" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    empty = [pa.field("extra", pa.null()) if field.name == "extra" else field for field in INPUT_FIELDS]
    three = write_folder(tmp_path / "c", [trajectory(2, [1], [1.0], extra=None)], input_fields=empty)
    assert select([one, three], out=tmp_path / "kept.jsonl").rows_kept == 2


def test_id_and_prompt_id_are_added_where_the_corpus_lacks_them(tmp_path: Path) -> None:
    fields = [pa.field("problem", pa.string()), pa.field("when", pa.timestamp("us")), pa.field("raw", pa.binary())]
    rows = [trajectory(n, [1], [1.0], problem=f"p{n}", when=0, raw=b"\xff") for n in range(3)]
    folder = write_folder(tmp_path / "s", rows, input_fields=fields)
    select(folder, "surprisal", top=1, out=tmp_path / "kept.parquet")
    assert pq.read_schema(tmp_path / "kept.parquet").names == ["problem", "when", "raw", "id", "prompt_id", "surprisal"]
    select(folder, "surprisal", top=1, out=tmp_path / "kept.jsonl")
    line = json.loads((tmp_path / "kept.jsonl").read_text())
    assert line["when"] == "1970-01-01T00:00:00"
    assert line["raw"] == "/w=="


def test_a_corpus_column_named_like_a_metric_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = [pa.field("id", pa.string()), pa.field("rsr", pa.float64()), pa.field("length", pa.int64())]
    rows = [trajectory(n, [n + 1], [1.0], rsr=99.0 - n, length=n) for n in range(3)]
    folder = write_folder(tmp_path / "s", rows, input_fields=fields)
    selection = select(folder, where="rsr > 98 AND trajscore_rsr < 5 AND length < 2", out=tmp_path / "kept.jsonl")
    first = json.loads((tmp_path / "kept.jsonl").read_text().split("\n")[0])
    assert first == {"id": "id-0000", "rsr": 99.0, "length": 0, "prompt_id": "prompt-0", "trajscore_rsr": 1.0}
    assert selection.rows_kept == 1
    assert "trajscore_rsr" in caplog.text


def test_corpus_columns_named_like_our_own_helpers(tmp_path: Path) -> None:
    names = ("row", "where", "folder", "step", "kept", "prompt_rank", "n", "rsr:numerator")
    fields = [pa.field("id", pa.string()), *(pa.field(name, pa.int64()) for name in names)]
    given = [dict.fromkeys(names, 10 * number) for number in range(3)]
    rows: list[Row] = [trajectory(number, [1], [1.0]) | own for number, own in enumerate(given)]
    folder = write_folder(tmp_path / "s", rows, input_fields=fields)
    selection = select(folder, where="row >= 10 AND step < 20", out=tmp_path / "kept.parquet")
    for kept in (pq.read_table(tmp_path / "kept.parquet").to_pylist(), selection.frame.collect().to_dicts()):
        assert kept == [{"id": "id-0001", **given[1], "prompt_id": "prompt-1", "rsr": 1.0}]
    assert selection.decisions["row"].to_list() == [0, 1, 2]


def test_several_folders_with_different_columns(tmp_path: Path) -> None:
    wide = pa.struct([("role", pa.string()), ("name", pa.string())])
    narrow = pa.struct([("role", pa.string())])
    for name, kind, number in (("a", narrow, 0), ("b", wide, 1)):
        own = [pa.field("id", pa.string()), pa.field("messages", pa.list_(kind)), pa.field(name, pa.int64())]
        own_value: dict[str, Any] = {name: 5}
        row = trajectory(number, [1], [1.0], messages=[{"role": "user", "name": "n"}], **own_value)
        write_folder(tmp_path / name, [row], input_fields=own)
    select([tmp_path / "a", tmp_path / "b"], out=tmp_path / "kept.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert lines[0]["messages"] == [{"role": "user"}]
    assert lines[1]["messages"] == [{"role": "user", "name": "n"}]
    assert (lines[0]["a"], lines[0]["b"], lines[1]["a"], lines[1]["b"]) == (5, None, None, 5)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_decisions_have_one_line_per_row(tmp_path: Path, suffix: str) -> None:
    rows = random_rows(40, seed=5)
    path = tmp_path / f"decisions{suffix}"
    selection = select(write_folder(tmp_path / "s", rows), ["rsr", "rank"], per_prompt=1, decisions=path)
    if suffix == ".csv":
        with path.open(newline="") as handle:
            lines: list[Row] = list(csv.DictReader(handle))
    elif suffix == ".parquet":
        lines = pq.read_table(path).to_pylist()
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    facts = ["row", "id", "prompt_id", "teacher", "kept", "step", "prompt_rank", "overall_rank"]
    assert list(lines[0]) == [*facts, "rsr", "rank"]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert sum(str(line["kept"]).lower() == "true" for line in lines) == selection.rows_kept


def test_nothing_kept_still_writes_files_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "s", [trajectory(0, [1], [1.0]), refused(1, "too_long")])
    for suffix in (".parquet", ".jsonl"):
        selection = select(folder, where="rsr < 0", out=tmp_path / f"kept{suffix}", decisions=tmp_path / "d.csv")
        assert selection.rows_kept == 0
        assert selection.after == {"rsr": None}
    assert pq.read_table(tmp_path / "kept.parquet").num_rows == 0
    assert pq.read_schema(tmp_path / "kept.parquet").names[-1] == "rsr"
    assert (tmp_path / "kept.jsonl").read_bytes() == b""
    assert "no row was kept" in caplog.text


def test_a_lazy_frame_stands_in_for_folders(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", random_rows(30, seed=6))
    by_folder = select(folder, per_prompt=1, out=tmp_path / "a.jsonl")
    by_frame = select(scan(folder), per_prompt=1, out=tmp_path / "b.jsonl")
    assert by_folder.decisions.equals(by_frame.decisions)
    ours = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    theirs = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    for line in ours:
        # A LazyFrame has no Arrow metadata: JSON text stays text.
        line["extra"] = f'{{"number": {line["extra"]["number"]}, "none": null}}'
    key = sorted(ours[0])
    assert [[line[name] for name in key] for line in ours] == [[line[name] for name in key] for line in theirs]


@pytest.mark.parametrize(
    ("settings_given", "message"),
    [
        ({"metric": "rrs"}, "rsr"),
        ({"metric": []}, "metric"),
        ({"top": 0}, "--top"),
        ({"per_prompt": -1}, "--per-prompt"),
        ({"max_tokens": 1.5}, "--max-tokens"),
        ({"top": True}, "--top"),
        ({"fraction": 0.0}, "--fraction"),
        ({"fraction": 1.01}, "--fraction"),
        ({"fraction": float("nan")}, "--fraction"),
        ({"top": 1, "fraction": 0.5}, "exclude"),
        ({"top": 1, "max_tokens": 5}, "exclude"),
        ({"prefer": "short"}, "correct"),
        ({"order": "up"}, "ascending"),
        ({"where": "rsr <"}, "--where"),
        ({"where": "rsrr < 3"}, "rsr"),
        ({"where": "rsr"}, "true or false"),
        ({"where": "teacher > 3"}, "--where"),
        ({"where": "CAST(teacher AS INT) = 3"}, "--where"),
        ({"where": "*"}, "--where"),
        ({"where": "rsr < AVG(rsr)"}, "more than one row"),
        ({"where": "AVG(rsr) < 3"}, "more than one row"),
        ({"where": "COUNT(*) > 1"}, "more than one row"),
        ({"where": "MEDIAN(rsr) > 1 OR rsr > 1"}, "more than one row"),
        ({"where": "SUM(rsr) OVER (PARTITION BY teacher) > 1"}, "more than one row"),
        ({"where": "rsr < (SELECT 1)"}, "--where"),
        ({"where": "rsr IN (SELECT 1)"}, "--where"),
        ({"preset": "rsr-33"}, "--preset"),
        ({"metric": "rsr:2"}, "--combine"),
        ({"metric": ["rsr:x", "length"], "combine": "rank"}, "no number"),
        ({"combine": "rank"}, "several metrics"),
        ({"metric": ["rsr", "length"], "combine": "mean"}, "--combine"),
        ({"metric": ["rsr", "length"], "combine": "rank", "combine_within": "teacher"}, "--combine-within"),
        ({"metric": ["rsr", "length"], "combine": "rank", "order": "asc"}, "exclude"),
        ({"quota": "teacher"}, "--quota"),
        ({"quota": ["teacher=2", "techer=0.5"]}, "techer"),
        ({"quota": "teacher:U=0.5"}, "no row has this value"),
        ({"quota": "messages=0.5"}, "--quota"),
        ({"quota": "teacher=0.5", "top": 1}, "no row can be kept"),
        ({"weight": "sofmax"}, "--weight"),
        ({"weight": "softmax", "temperature": 0.0}, "--temperature"),
        ({"weight": "softmax", "temperature": float("inf")}, "--temperature"),
        ({"weight": "softmax", "weight_within": "teacher"}, "--weight-within"),
        ({"weight": "softmax", "order": "random"}, "exclude"),
        ({"weight": "paced"}, "pass_rate"),
        ({"weight": "paced", "weight_column": "teacher"}, "numbers"),
        ({"explain": "id-00"}, "no row has this id"),
        ({"out": "kept.csv"}, ".parquet or .jsonl"),
        ({"decisions": "d.txt"}, ".csv"),
    ],
)
def test_wrong_settings_are_usage_errors(tmp_path: Path, settings_given: dict[str, Any], message: str) -> None:
    folder = write_folder(tmp_path / "s", [trajectory(0, [1], [1.0])])
    targets = {"out": tmp_path / "kept.jsonl", "decisions": tmp_path / "d.csv"}
    with pytest.raises(UsageError, match=message) as caught:
        select(folder, **{**targets, **settings_given})
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["s"], "nothing is written"


def test_prefer_needs_a_truth_value(tmp_path: Path) -> None:
    without = [field for field in INPUT_FIELDS if field.name != "correct"]
    folder = write_folder(tmp_path / "a", [trajectory(0, [1], [1.0])], input_fields=without)
    with pytest.raises(UsageError, match="correct"):
        select(folder, prefer="correct")
    text = [*without, pa.field("correct", pa.string())]
    folder = write_folder(tmp_path / "b", [trajectory(0, [1], [1.0], correct="yes")], input_fields=text)
    with pytest.raises(UsageError, match="holds 'yes'"):
        select(folder, prefer="correct")
    whole = [*without, pa.field("correct", pa.int64())]
    rows = [trajectory(0, [1], [1.0], correct=0, prompt_id="p"), trajectory(1, [1], [1.0], correct=1, prompt_id="p")]
    assert _kept(select(write_folder(tmp_path / "c", rows, input_fields=whole), prefer="correct")) == ["id-0001"]


def test_folders_that_do_not_go_together(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "a", [trajectory(0, [1], [1.0])])
    same = write_folder(tmp_path / "b", [trajectory(0, [2], [1.0])])
    other = write_folder(tmp_path / "c", [trajectory(1, [1], [1.0])], student="another")
    with pytest.raises(UsageError, match="id-0000"):
        select([one, same])
    with pytest.raises(UsageError, match="another"):
        select([one, other])
    with pytest.raises(UsageError, match=r"manifest\.json"):
        select(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="folders"):
        select([])
    with pytest.raises(UsageError, match="which SCORES reads"):
        select(one, out=one / "kept.parquet")


def test_a_refused_duplicate_in_the_same_folder_is_no_error(tmp_path: Path) -> None:
    rows = [trajectory(0, [1], [1.0]), refused(1, "duplicate_id", id="id-0000")]
    assert select(write_folder(tmp_path / "s", rows)).dropped == {"refused:duplicate_id": 1}
    with pytest.raises(UsageError, match="id-0000"):
        select(write_folder(tmp_path / "t", [rows[0], trajectory(1, [1], [1.0], id="id-0000")]))


def test_a_frame_without_the_metrics_column_names_the_flag() -> None:
    frame = pl.LazyFrame({"id": ["a"], "prompt_id": ["p"], "status": ["ok"]})
    with pytest.raises(UsageError, match="--student"):
        select(frame)
    with pytest.raises(UsageError, match="status"):
        select(frame.drop("status"))
    with pytest.raises(UsageError, match="student_entropy"):
        select(frame.with_columns(n_tokens=1), "length", where="entropy > 1")


def test_a_damaged_part_is_a_data_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", random_rows(20), part_rows=10)
    part = folder / "part-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:200] + b"\0" * 400 + whole[600:])
    with pytest.raises(DataError):
        select(folder, out=tmp_path / "kept.parquet")
    part.unlink()
    with pytest.raises(DataError, match="part-00001"):
        select(folder)


def test_an_unwritable_target_is_no_traceback(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", [trajectory(0, [1], [1.0])])
    (tmp_path / "file").write_text("")
    with pytest.raises(TrajscoreError, match="cannot be written"):
        select(folder, out=tmp_path / "file" / "kept.jsonl")


@pytest.mark.parametrize("wrong", [-1.0, 0.5, float("nan")])
def test_a_number_that_is_no_truth_value_is_not_taken_for_one(wrong: float, tmp_path: Path) -> None:
    fields = [field for field in INPUT_FIELDS if field.name != "correct"]
    numbers = [*fields, pa.field("correct", pa.float64())]
    rows = [trajectory(i, [1], [1.0], correct=value) for i, value in enumerate([1.0, wrong, None])]
    folder = write_folder(tmp_path / "s", rows, input_fields=numbers)
    with pytest.raises(UsageError, match="the column 'correct' holds"):
        select(folder, prefer="correct")
    assert report(folder).ranking.lines[0].share_correct is None  # type: ignore[union-attr]
    assert any("not shown" in note for note in report(folder).notes)


def test_scores_that_are_not_finished_are_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "s", [trajectory(i, [1], [1.0]) for i in range(8)], part_rows=4)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"complete": False, "rows_in": 8, "parts": manifest["parts"][:1]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    selection = select(folder)
    assert "4 rows of 8 are there" in caplog.text
    assert selection.to_dict()["unfinished"] == list(selection.unfinished)
    assert any("has not finished" in note for note in report(folder).notes)


def test_a_corpus_column_with_our_prefix_is_refused(tmp_path: Path) -> None:
    fields = [pa.field("id", pa.string()), pa.field("trajscore.row", pa.int64())]
    folder = write_folder(tmp_path / "s", [trajectory(0, [1], [1.0]) | {"trajscore.row": 5}], input_fields=fields)
    with pytest.raises(UsageError, match=r"trajscore\.row"):
        select(folder, out=tmp_path / "kept.jsonl")
    assert not (tmp_path / "kept.jsonl").exists()


def test_folders_of_another_schema_version(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "a", [trajectory(0, [1], [1.0])])
    two = write_folder(tmp_path / "b", [trajectory(1, [1], [1.0])])
    manifest = json.loads((two / "manifest.json").read_text())
    (two / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(UsageError, match="schema version 99"):
        select([one, two], out=tmp_path / "kept.jsonl")
    assert not (tmp_path / "kept.jsonl").exists()


def _teachers(path: Path) -> Path:
    """Twelve rows, two prompts; RSR rises with the number; two in three by A, the rest by B."""
    rows = [
        trajectory(n, [n + 1] * 2, [1.0] * 2, prompt_id=f"p{n % 2}", teacher="AAB"[n % 3], correct=n > 5)
        for n in range(12)
    ]
    return write_folder(path, rows, part_rows=5)


def test_weights_and_combined_values_are_written(tmp_path: Path) -> None:
    folder = _teachers(tmp_path / "s")
    settings_given: dict[str, Any] = {"metric": ["rsr:2", "length"], "combine": "rank", "weight": "softmax", "top": 4}
    for suffix in (".jsonl", ".parquet"):
        out = tmp_path / f"kept{suffix}"
        selection = select(folder, **settings_given, out=out)
        lines = pq.read_table(out).to_pylist() if suffix == ".parquet" else [
            json.loads(line) for line in out.read_text().splitlines()
        ]  # fmt: skip
        assert list(lines[0])[-4:] == ["rsr", "length", "combined", "sample_weight"]
        assert [line["id"] for line in lines] == ["id-0000", "id-0001", "id-0002", "id-0003"]
        assert sum(line["sample_weight"] for line in lines) == pytest.approx(4)
        assert lines[0]["sample_weight"] > lines[3]["sample_weight"] > 0
        # The best of twelve by rsr, tied with all by length: (2 * 11.5/12 + 1/2) / 3.
        assert lines[0]["combined"] == pytest.approx((2 * 11.5 / 12 + 0.5) / 3)
        assert selection.frame.collect().select("id", "combined", "sample_weight").to_dicts() == [
            {name: line[name] for name in ("id", "combined", "sample_weight")} for line in lines
        ]
    assert pq.read_schema(tmp_path / "kept.parquet").field("sample_weight").metadata[b"meaning"]
    assert selection.decisions["sample_weight"].null_count() == 8


def test_a_corpus_column_named_like_a_weight_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = [pa.field("id", pa.string()), pa.field("sample_weight", pa.float64())]
    folder = write_folder(tmp_path / "s", [trajectory(0, [1], [1.0], sample_weight=7.0)], input_fields=fields)
    select(folder, weight="rank", out=tmp_path / "kept.jsonl")
    line = json.loads((tmp_path / "kept.jsonl").read_text())
    assert (line["sample_weight"], line["trajscore_sample_weight"]) == (7.0, 1.0)
    assert "trajscore_sample_weight" in caplog.text


def test_quotas_over_any_column(tmp_path: Path) -> None:
    folder = _teachers(tmp_path / "s")
    selection = select(folder, top=6, quota="teacher=0.5")
    assert selection.kept_per_teacher == {"A": 3, "B": 3}
    assert _kept(selection) == ["id-0000", "id-0001", "id-0002", "id-0003", "id-0005", "id-0008"]
    # Not --top: only A's rows are left when the quota of A is full and six are kept, and then the budget is full too.
    assert selection.dropped == {"top": 3, "quota": 3}
    assert select(folder, quota="teacher:A=1").kept_per_teacher == {"B": 4, "A": 1}
    assert select(folder, quota=["teacher=2", "correct=3"]).rows_kept == 4
    assert select(folder, quota="correct:true=1").rows_kept == 7


def test_pass_rates_of_another_column(tmp_path: Path) -> None:
    fields = [pa.field("id", pa.string()), pa.field("rate", pa.float32())]
    rows = [trajectory(n, [1], [1.0], rate=rate) for n, rate in enumerate([0.5, 0.0, 0.5, None])]
    folder = write_folder(tmp_path / "s", rows, input_fields=fields)
    with pytest.raises(UsageError, match="id-0003"):
        select(folder, weight="paced", weight_column="rate", out=tmp_path / "kept.jsonl")
    assert not (tmp_path / "kept.jsonl").exists()
    selection = select(folder, preset="paced", weight_column="rate", where="rate IS NOT NULL")
    assert selection.frame.collect()["sample_weight"].to_list() == [1.5, 0.0, 1.5]


def test_random_order_is_the_same_whatever_the_other_rows(tmp_path: Path) -> None:
    folder = _teachers(tmp_path / "s")
    first = _kept(select(folder, order="random", top=4))
    assert first == _kept(select(folder, order="random", top=4, metric="length"))
    assert any(_kept(select(folder, order="random", top=4, seed=seed)) != first for seed in range(1, 4))
    removed = select(folder, order="random", where=f"id <> '{first[0]}'", top=4)
    assert set(first[1:]) <= set(_kept(removed))


def _explained(folder: Path, name: str, **settings_given: Any) -> dict[str, Any]:
    told: dict[str, Any] = select(folder, **settings_given).explain(name)
    json.dumps(told, allow_nan=False)
    assert told["id"] == name
    return told


def test_explanations(tmp_path: Path) -> None:
    folder = _teachers(tmp_path / "s")
    kept = _explained(folder, "id-0002", per_prompt=2)
    assert kept["reason"] == "rank 2 of 6 candidates of its prompt; rank 3 of 4 rows that reached the budget"
    assert kept["numbers"] == {"rsr": 3.0, "n_tokens": 2, "prompt_rank": 2, "overall_rank": 3}
    assert [line["id"] for line in kept["candidates"]] == [f"id-{n:04d}" for n in range(0, 12, 2)]
    assert kept["cut"] == {}
    told = _explained(folder, "id-0004", per_prompt=2)
    assert told["reason"] == "rank 3 of 6 candidates of its prompt, of which --per-prompt 2 keeps the best"
    told = _explained(folder, "id-0003", prefer="correct")
    assert told["reason"] == "it is incorrect, and 3 candidates of its prompt are correct (--prefer correct)"
    assert "'rsr < 2' is false" in _explained(folder, "id-0003", where="rsr < 2")["reason"]
    told = _explained(folder, "id-0007", top=3)
    assert told["reason"] == "rank 8 of 12 rows that reached the budget; --top 3 left no room after 3 better rows"
    assert told["cut"]["last_kept"]["id"] == "id-0002"
    assert told["cut"]["first_dropped"]["rsr"] == 4.0
    told = _explained(folder, "id-0007", max_tokens=5)
    assert "--max-tokens 5 left no room after 2 better rows with 4 tokens; it has 2" in told["reason"]
    told = _explained(folder, "id-0004", top=6, quota="teacher=0.5")
    assert told["step"] == "quota"
    assert "--quota teacher=0.5 allows 3 of 6 rows, and 3 better ones have 'A'" in told["reason"]


def test_refused_rows_are_explained_too(tmp_path: Path) -> None:
    detail = "1,000 tokens, the limit is 10"
    rows = [
        trajectory(0, [1], [1.0], prompt_id="p"),
        refused(1, "too_long", prompt_id="p", status_detail=detail),
        refused(2, "duplicate_id", id="id-0000", prompt_id="p"),
        trajectory(3, [1], [0.0], prompt_id="p"),
    ]
    folder = write_folder(tmp_path / "s", rows)
    told = _explained(folder, "id-0001")
    assert told["reason"] == f"it could not be scored: too_long ({detail})"
    assert told["numbers"] == {"rsr": None, "n_tokens": None, "prompt_rank": None, "overall_rank": None}
    assert [line["step"] for line in told["candidates"]] == [
        "kept", "refused:too_long", "refused:duplicate_id", "undefined_metric",
    ]  # fmt: skip
    assert _explained(folder, "id-0000")["kept"] is True
    assert "rsr is undefined" in _explained(folder, "id-0003")["reason"]


def test_an_unknown_id_is_answered_with_near_ones(tmp_path: Path) -> None:
    selection = select(_teachers(tmp_path / "s"))
    with pytest.raises(UsageError) as caught:
        selection.explain("id-03")
    assert "'id-0003'" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        selection.explain("zebra")
    assert "for example, 'id-0000'" in caught.value.hint


def test_presets_are_the_flags_that_they_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _teachers(tmp_path / "s")
    with caplog.at_level("INFO", "trajscore"):
        preset = select(folder, preset="rsr-correct")
    assert "--metric rsr --per-prompt 1 --prefer correct" in caplog.text
    plain = select(folder, "rsr", per_prompt=1, prefer="correct")
    assert preset.decisions.equals(plain.decisions)
    assert preset.options == replace(plain.options, preset="rsr-correct")
    # What the user says wins.
    mine = select(folder, "length", preset="rsr-correct", per_prompt=3, top=4)
    assert (mine.options.metrics, mine.options.per_prompt, mine.options.top) == (("length",), 3, 4)
    assert mine.options.prefer == "correct"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_complete(name: str) -> None:
    assert PRESETS[name].source.startswith("arXiv ")
    assert PRESETS[name].meaning
    settings_given = expand(name, {"top": 5})
    assert settings_given["top"] == 5
    assert not {"fraction", "max_tokens"} & settings_given.keys(), "the user's budget replaces the preset's"
    Policy(**{("metrics" if key == "metric" else key): value for key, value in settings_given.items()})


def test_a_combination_that_says_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [trajectory(n, [n + 1], [1.0], prompt_id=f"p{n}") for n in range(4)]
    folder = write_folder(tmp_path / "s", rows)
    select(folder, ["rsr", "surprisal"], combine="rank", combine_within="prompt", top=2)
    assert "same combined value" in caplog.text
    caplog.clear()
    select(folder, ["rsr", "surprisal"], combine="rank", top=2)
    assert "same combined value" not in caplog.text
