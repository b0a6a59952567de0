"""`score --reuse`: what is copied from an older folder equals what scoring gives, and nothing is copied that could differ."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.paths import DATA
from trajscore.cli import app
from trajscore.corpus import Trajectory
from trajscore.errors import DataError, UsageError
from trajscore.options.groups import RenderOptions
from trajscore.rendering.renderer import BareTurn, Rendered, Renderer
from trajscore.schema import OK
from trajscore.scores.part_files import ROWS_KEY
from trajscore.scoring.passes import Passes
from trajscore.scoring.reuse import row_key
from trajscore.scoring.rows import ScoredRow

STUDENT, TEACHER, LLAMA = (DATA / "models" / name for name in ("student", "teacher", "student-llama"))
# Rows of which no two fit into a batch of BATCH tokens, none twice: what the other rows of a batch are leaves floating-point
# noise, which is not what is tested here.
BATCH = 139


def _rows() -> list[dict[str, Any]]:
    renderer = Renderer(str(STUDENT), RenderOptions())
    lines = (DATA / "trajectories.jsonl").read_text("utf-8").split("\n")[:60]
    rows = {json.dumps(row["messages"]): row for row in map(json.loads, lines)}.values()
    lengths = [len(renderer.render_messages(row["messages"]).input_ids_P) for row in rows]
    return [row for row, length in zip(rows, lengths, strict=True) if BATCH // 2 < length <= BATCH]


ROWS = _rows()
ALONE: dict[str, Any] = {"engine": "hf", "max_num_batched_tokens": BATCH}


def _corpus(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """The older corpus in another order, under other ids and prompt ids, with new rows between its own."""
    rows = [{**row, "id": f"new-{row['id']}", "prompt_id": f"p-{row['prompt_id']}"} for row in ROWS]
    random.Random(5).shuffle(rows)
    return _corpus(tmp_path, "grown.jsonl", rows)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the rows that models were given, filled as they run."""
    given: list[str] = []
    real = Passes.run

    def run(self: Passes, rows: Sequence[ScoredRow], done: Any = None) -> None:
        given.extend(row.trajectory.id for row in rows)
        real(self, rows, done)

    monkeypatch.setattr(Passes, "run", run)
    return given


@pytest.mark.parametrize(
    "options",
    [
        {"teacher": TEACHER, "extra": ["local:1"], "keep_topk": 4, "unconditional": True, "storage": "float16"},
        {"teacher": LLAMA, "align": "bytes", "distilled": TEACHER},
    ],
    ids=["same tokens", "tokens of its own"],
)
def test_a_grown_corpus_is_as_if_scored_anew(
    options: dict[str, Any], grown: Path, tmp_path: Path, read: list[str]
) -> None:
    older = _corpus(tmp_path, "older.jsonl", ROWS[:14])
    ts.score(older, STUDENT, tmp_path / "older", part_rows=4, **ALONE, **options)
    anew = ts.score(grown, STUDENT, tmp_path / "anew", part_rows=5, **ALONE, **options)
    read.clear()
    summary = ts.score(grown, STUDENT, tmp_path / "out", part_rows=5, reuse=tmp_path / "older", **ALONE, **options)
    ok = set(ts.scan(tmp_path / "older").filter(pl.col("status") == OK).collect()["id"])
    assert summary.copied_rows == len(ok) == 14
    assert sorted(read) == sorted(f"new-{row['id']}" for row in ROWS if row["id"] not in ok)
    assert dataclasses.replace(summary, out="", seconds=0, copied_rows=0) == dataclasses.replace(
        anew, out="", seconds=0
    )
    found, expected = (ts.scan(tmp_path / name).collect() for name in ("out", "anew"))
    assert found.equals(expected, null_equal=True)
    assert ts.verify(tmp_path / "out").problems == []
    manifest = ts.read_manifest(tmp_path / "out")
    assert manifest.reused == {ts.read_manifest(tmp_path / "older").run: str(tmp_path / "older")}
    assert manifest.totals["copied"] == sum(part.copied for part in manifest.parts) == len(ok)
    assert manifest.settings == ts.read_manifest(tmp_path / "anew").settings


def test_copied_rows_are_the_older_ones_to_the_last_bit(tmp_path: Path) -> None:
    """In batches as they come, of a corpus that grew at its end."""
    older, more = _corpus(tmp_path, "older.jsonl", ROWS[:12]), _corpus(tmp_path, "more.jsonl", ROWS[:18])
    ts.score(older, STUDENT, tmp_path / "older", part_rows=6, engine="hf")
    ts.score(more, STUDENT, tmp_path / "out", part_rows=6, engine="hf", reuse=tmp_path / "older")
    found, expected = (ts.scan(tmp_path / name).collect() for name in ("out", "older"))
    assert found.head(12).equals(expected, null_equal=True)
    assert [part.copied for part in ts.read_manifest(tmp_path / "out").parts] == [6, 6, 0]


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        ({"dtype": "bfloat16"}, "student.dtype"),
        ({"student": TEACHER}, "student.weights_sha256"),
        ({"teacher": TEACHER}, "others"),
        ({"unconditional": True}, "unconditional"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "rendering.chat_template_kwargs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_copy_nothing_and_say_so(
    changed: dict[str, Any], setting: str, older: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"student": STUDENT, "engine": "hf", **changed}
    with caplog.at_level(logging.WARNING):
        ts.score(older.with_suffix(".jsonl"), out=tmp_path / "out", reuse=older, **options)
    manifest = ts.read_manifest(tmp_path / "out")
    assert (manifest.totals["copied"], manifest.reused) == (0, {})
    assert "nothing is copied, because its scores were made with other settings" in caplog.text
    assert setting in caplog.text


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of a few rows, and their corpus beside them."""
    folder = tmp_path_factory.mktemp("older")
    ts.score(_corpus(folder, "older.jsonl", ROWS[:6]), STUDENT, folder / "older", part_rows=3, engine="hf")
    return folder / "older"


def test_a_run_that_is_killed_goes_on_without_the_older_folder(
    older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = _corpus(tmp_path, "c.jsonl", ROWS[:12])
    real, calls = Passes.run, list[int]()

    def run(self: Passes, rows: Sequence[ScoredRow], done: Any = None) -> None:
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, rows, done)

    monkeypatch.setattr(Passes, "run", run)
    with pytest.raises(KeyboardInterrupt):
        ts.score(corpus, STUDENT, tmp_path / "out", part_rows=3, engine="hf", reuse=older)
    monkeypatch.setattr(Passes, "run", real)
    assert calls[:2] == [0, 0]
    # The manifest is as it was before it learnt of the second part, which is entered by what it says of itself.
    manifest = tmp_path / "out" / "manifest.json"
    said = json.loads(manifest.read_bytes())
    said["parts"] = said["parts"][:1]
    manifest.write_text(json.dumps(said))
    ts.score(corpus, STUDENT, tmp_path / "out", part_rows=3, engine="hf")
    ts.score(corpus, STUDENT, tmp_path / "anew", part_rows=3, engine="hf")
    assert ts.scan(tmp_path / "out").collect().equals(ts.scan(tmp_path / "anew").collect(), null_equal=True)
    finished = ts.read_manifest(tmp_path / "out")
    assert [part.copied for part in finished.parts] == [3, 3, 0, 0]
    assert list(finished.reused.values()) == [str(older)]


def test_the_dry_run_counts_what_would_be_copied(older: Path, tmp_path: Path) -> None:
    plan = ts.score_plan(
        _corpus(tmp_path, "c.jsonl", ROWS[:12]),
        STUDENT,
        tmp_path / "out",
        reuse=older,
        engine="hf",
        calibration_seconds=0.01,
    )
    assert (plan.rows["total"], plan.rows["copied"].value) == (12, 6)


def test_folders_from_which_nothing_can_be_read(older: Path, tmp_path: Path) -> None:
    corpus, copy = older.with_suffix(".jsonl"), tmp_path / "copy"
    copy.mkdir()
    for path in older.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="is what --reuse reads"):
        ts.score(corpus, STUDENT, copy, engine="hf", reuse=copy, overwrite=True)
    with pytest.raises(UsageError, match="no scores here"):
        ts.score(corpus, STUDENT, tmp_path / "out", engine="hf", reuse=older.parent)
    part = copy / "part-00000.parquet"
    data = part.read_bytes()
    middle = len(data) // 3
    part.write_bytes(data[:middle] + bytes(byte ^ 0x55 for byte in data[middle : middle + 64]) + data[middle + 64 :])
    with pytest.raises(DataError, match=r"part-00000\.parquet cannot be read"):
        ts.score(corpus, STUDENT, tmp_path / "out", engine="hf", reuse=copy)
    said = json.loads((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").write_text(json.dumps({**said, "schema_version": 1}))
    with pytest.raises(
        UsageError, match=r"schema version 1, written by trajscore \d.*; this trajscore reads"
    ) as caught:
        ts.score(corpus, STUDENT, tmp_path / "out", engine="hf", reuse=copy)
    assert "nothing of it can be copied" in caught.value.hint


def test_scores_of_an_older_schema_name_the_command_that_makes_them_anew(
    older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run as it stands, where corpus and student are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student").symlink_to(STUDENT)
    (tmp_path / older.with_suffix(".jsonl").name).write_bytes(older.with_suffix(".jsonl").read_bytes())
    folder = tmp_path / "it's old"
    shutil.copytree(older, folder)
    said = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps({**said, "schema_version": 1}))
    refused = CliRunner().invoke(app, ["select", str(folder), "--metric", "rsr"])
    assert refused.exit_code == 2
    told = " ".join(refused.stderr.split())
    command = shlex.split(told[told.index("trajscore score") :])
    assert CliRunner().invoke(app, command[1:]).exit_code == 0
    assert ts.scan(tmp_path / "it's old-again").collect().height == said["totals"]["rows"]


def test_parts_without_keys_are_scored(older: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such as those that a version of the same schema wrote before there were keys."""
    copy = tmp_path / "copy"
    copy.mkdir()
    said = json.loads((older / "manifest.json").read_bytes())
    for part in said["parts"]:
        table = pq.read_table(older / part["file"])
        metadata = {name: value for name, value in table.schema.metadata.items() if name != ROWS_KEY}
        pq.write_table(table.replace_schema_metadata(metadata), copy / part["file"])
        part["bytes"] = (copy / part["file"]).stat().st_size
    (copy / "manifest.json").write_text(json.dumps(said))
    summary = ts.score(older.with_suffix(".jsonl"), STUDENT, tmp_path / "out", engine="hf", reuse=copy)
    assert summary.copied_rows == 0
    assert "2 of 2 parts were written before rows could be copied" in caplog.text


def _row(**changes: Any) -> ScoredRow:
    rendered: dict[str, Any] = {
        "input_ids_P": [1, 2, 3], "positions_N": [2], "sentence_N": [0], "scaffold_S": [], "n_sentences": 1,
        "bare_turns": (BareTurn(np.array([7], np.int32), 0),),
    }  # fmt: skip
    trajectory: dict[str, Any] = {
        "id": "a", "prompt_id": "p", "teacher": "w", "text": None, "tools": None,
        "messages": [{"role": "assistant", "content": "x"}],
    }  # fmt: skip
    for name, value in changes.items():
        (rendered if name in rendered else trajectory)[name] = value
    arrays = {name: np.array(value, np.uint32) for name, value in rendered.items() if isinstance(value, list)}
    return ScoredRow(Trajectory(**trajectory), Rendered(**{**rendered, **arrays}))


@pytest.mark.parametrize(
    "changes",
    [
        {"input_ids_P": [1, 2, 4]},
        {"positions_N": [1]},
        {"input_ids_P": [1, 2], "positions_N": [3, 2]},
        {"sentence_N": [1]},
        {"n_sentences": 2},
        {"scaffold_S": [1]},
        {"bare_turns": (BareTurn(np.array([8], np.int32), 0),)},
        {"messages": [{"role": "assistant", "content": "y"}]},
        {"tools": [{}]},
        {"chat_template_kwargs": {"a": 1}},
        {"weights": {0: 0.5}},
        {"teacher": "v"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_keys_differ_where_anything_that_is_read_differs(changes: dict[str, Any]) -> None:
    key = row_key(_row(), conversation=True, author=True)
    assert row_key(_row(**changes), conversation=True, author=True) != key
    assert row_key(_row(id="b", prompt_id="q", correct=True), conversation=True, author=True) == key
