"""`mask --schedule`: stages by a column, the lowest number first, each in a file of its own; nothing is lost or changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.helpers.score_tables import INPUT_FIELDS, random_rows, refused, trajectory, write_folder
from trajscore.cli import app
from trajscore.errors import UsageError
from trajscore.masking.mask import mask

ALL: dict[str, Any] = {"rule": "prefix", "keep": 1.0}
TEMPERATURES = [1.0, 0.6, None, 0.6, 0.8, 1.0, 0.6]


def _folder(path: Path, rows: list[dict[str, Any]], part_rows: int = 3, bits: int = 32) -> Path:
    kind = pa.float32() if bits == 32 else pa.float64()
    return write_folder(
        path, rows, part_rows=part_rows, input_fields=[*INPUT_FIELDS, pa.field("temperature", kind)], settings={}
    )


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Seven rows in parts of three; the last one was not scored. The column is float32, which holds no 0.6."""
    rows = [trajectory(n, [1] * (n + 1), [1.0] * (n + 1)) for n in range(6)] + [refused(6, "too_long")]
    return _folder(tmp_path / "scores", [{**row, "temperature": t} for row, t in zip(rows, TEMPERATURES, strict=True)])


def test_by_hand(scores: Path, tmp_path: Path) -> None:
    result = mask(scores, **ALL, schedule="temperature=0.6,1", out=tmp_path / "m.parquet")
    assert (result.rows_in, result.rows_masked) == (7, 4)
    assert result.dropped == {"refused:too_long": 1, "not_scheduled": 2}
    assert sorted(path.name for path in tmp_path.glob("m*")) == ["m-1.parquet", "m-2.parquet"]
    tables = [pq.read_table(tmp_path / f"m-{number}.parquet") for number in (1, 2)]
    assert [table["id"].to_pylist() for table in tables] == [["id-0001", "id-0003"], ["id-0000", "id-0005"]]
    assert tables[0]["labels"].to_pylist() == [[-100, 1, 2], [-100, 1, 2, 3, 4]]
    assert all(b"trajscore.mask" in table.schema.metadata for table in tables)
    frame = result.frame.collect()
    assert frame.select("id", "stage").rows() == [("id-0001", 1), ("id-0003", 1), ("id-0000", 2), ("id-0005", 2)]
    assert result.to_dict()["stages"] == [
        {"value": 0.6, "rows": 2, "tokens_kept": 6, "out": str(tmp_path / "m-1.parquet")},
        {"value": 1.0, "rows": 2, "tokens_kept": 7, "out": str(tmp_path / "m-2.parquet")},
    ]
    counted = mask(scores, **ALL, schedule="temperature=0.6,1")
    assert [{**each, "out": None} for each in result.stages or ()] == counted.stages
    # The preset has these stages, writes the same two files, and gives way to other stages.
    preset = mask(scores, preset="dasd", out=tmp_path / "d.parquet")
    assert preset.stages == [{**each, "out": each["out"].replace("m-", "d-")} for each in result.stages or ()]
    assert sorted(path.name for path in tmp_path.glob("d*")) == ["d-1.parquet", "d-2.parquet"]
    with pytest.raises(UsageError, match="d-1"):
        mask(scores, preset="dasd", selected=tmp_path / "d-1.parquet", out=tmp_path / "d.parquet")
    assert mask(scores, preset="dasd", schedule="temperature=0.6,0.8,1").rows_masked == 5
    # Without a schedule there are no stages, and no such column.
    plain = mask(scores, **ALL)
    assert plain.stages is None
    assert "stage" not in plain.frame.collect_schema()


def test_on_the_command_line(scores: Path, tmp_path: Path) -> None:
    arguments = ["mask", str(scores), "--rule", "prefix", "--keep", "1", "--schedule", "temperature=0.6,0.8,1"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "m.jsonl")])
    assert done.exit_code == 0, done.output
    shown = " ".join(done.stdout.split())
    assert "7 rows in = 5 masked + 2 dropped" in shown
    assert "stage 2 (0.8): 1 rows, 5 tokens with a label" in shown
    assert not (tmp_path / "m.jsonl").exists()
    rows = [
        [json.loads(line)["id"] for line in (tmp_path / f"m-{n}.jsonl").read_text().splitlines()] for n in (1, 2, 3)
    ]
    assert rows == [["id-0001", "id-0003"], ["id-0004"], ["id-0000", "id-0005"]]
    done = CliRunner().invoke(
        app, [*arguments, "--out", str(tmp_path / "m.jsonl"), "--selected", str(tmp_path / "m-2.jsonl")]
    )
    assert done.exit_code == 2
    assert "m-2.jsonl" in done.output


@pytest.mark.parametrize("rule", [{"rule": "entropy", "keep": 0.4}, {"rule": "soft_or", "keep": 0.5}])
def test_labels_are_those_without_a_schedule_however_parts_are_cut(rule: dict[str, Any], tmp_path: Path) -> None:
    """What is normalised over the corpus is so over all stages together."""
    rows = [{**row, "temperature": [0.6, 1.0][number % 3 % 2]} for number, row in enumerate(random_rows(30, seed=4))]
    for row in rows:
        if row["status"] == "ok":
            row["kl_student_teacher"] = [value * (1 + index % 3) for index, value in enumerate(row["student_entropy"])]
    plain = {row["id"]: row["labels"] for row in mask(_folder(tmp_path / "p", rows), **rule).frame.collect().to_dicts()}
    found = []
    for name, part_rows, order in (("one", 40, 1), ("many", 4, 1), ("back", 7, -1)):
        folder = _folder(tmp_path / name, rows[::order], part_rows, 64)
        frame = mask(folder, **rule, schedule="temperature=0.6,1").frame.collect()
        assert frame["stage"].is_sorted()
        assert {row["id"]: row["labels"] for row in frame.to_dicts()} == plain
        found.append([frame.filter(stage=number)["id"].to_list()[::order] for number in (1, 2)])
    assert found[0] == found[1] == found[2]
    assert all(len(each) > 5 for each in found[0])


def test_a_selections_order_and_weights_hold_within_a_stage(scores: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.jsonl"
    ids = ["id-0005", "id-0003", "id-0002", "id-0000", "id-0001"]
    chosen.write_text("".join(json.dumps({"id": name, "sample_weight": n + 0.5}) + "\n" for n, name in enumerate(ids)))
    result = mask(scores, **ALL, selected=chosen, schedule="temperature=0.6,1", out=tmp_path / "m.jsonl")
    assert result.dropped == {"refused:too_long": 1, "not_selected": 1, "not_scheduled": 1}
    assert result.frame.select("id", "sample_weight").collect().rows() == [
        ("id-0003", 1.5), ("id-0001", 4.5), ("id-0005", 0.5), ("id-0000", 3.5),
    ]  # fmt: skip
    written = [json.loads(line)["id"] for line in (tmp_path / "m-2.jsonl").read_text().splitlines()]
    assert written == ["id-0005", "id-0000"]


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("temperature", "cannot be read"),
        ("=0.6,1", "cannot be read"),
        ("temperature=low,high", "cannot be read"),
        ("temperature=0.6,nan", "cannot be read"),
        ("temperature=0.6", "two or more numbers, the lowest first"),
        ("temperature=1,0.6", "two or more numbers, the lowest first"),
        ("temperature=0.6,0.6", "two or more numbers, the lowest first"),
        ("heat=0.6,1", "reads the column 'heat', which these scores do not hold"),
        ("teacher=0.6,1", "the column 'teacher' is String"),
        ("temperature=0.6,2", "no row to be masked has 2 in the column 'temperature'"),
    ],
)
def test_what_is_refused_writes_nothing(schedule: str, said: str, scores: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        mask(scores, **ALL, schedule=schedule, out=tmp_path / "m.jsonl")
    assert not list(tmp_path.glob("m*"))


def test_constants_and_a_single_row_a_stage() -> None:
    row = {"prompt_id": ["p"] * 2, "status": ["ok"] * 2, "input_ids": [[7, 8]] * 2, "positions": [[1]] * 2}
    frame = pl.LazyFrame({"id": ["a", "b"], **row, "n_tokens": [1, 1], "temperature": [1, 0]})
    found = mask(frame, **ALL, schedule="temperature=0,1").frame.collect()
    assert found.select("id", "stage").rows() == [("b", 1), ("a", 2)]
