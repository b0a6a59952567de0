"""Metrics that users add: a file's metrics work like ours everywhere, and whatever is wrong with a file is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.score_tables import random_rows, write_folder
from trajscore.cli import app
from trajscore.errors import UsageError
from trajscore.metrics import METRICS, known_metrics

HEAD = "import polars as pl\nfrom trajscore.metrics import Metric\n"
FIELDS = {
    "name": '"worst"',
    "numerator": 'lambda: pl.col("student_surprisal").list.max()',
    "unit": '"nats"',
    "direction": '"lower"',
    "columns": '("student_surprisal",)',
    "source": '"own"',
    "meaning": '"largest surprisal"',
}


def _source(**fields: str) -> str:
    return f"Metric({', '.join(f'{name}={value}' for name, value in (FIELDS | fields).items())})"


def _one(**fields: str) -> str:
    return f"METRICS = [{_source(**fields)}]"


def _file(folder: Path, text: str) -> Path:
    path = folder / "own.py"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return _file(tmp_path, f"{HEAD}METRICS = [{_source()}]\n")


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "scores", random_rows(60, seed=4), part_rows=9)


def _run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="trajscore")


def _worst(scores: Path) -> dict[str, float]:
    rows = ts.scan(scores).filter(pl.col("status") == "ok").select("id", "student_surprisal").collect()
    return {name: max(values) for name, values in rows.iter_rows()}


def test_the_table_is_handed_on_and_ours_stays_as_it_is(own: Path) -> None:
    before = dict(METRICS)
    assert list(known_metrics(own)) == [*before, "worst"]
    assert before == METRICS == known_metrics()


def test_select_ranks_by_it_and_conditions_may_name_it(own: Path, scores: Path, tmp_path: Path) -> None:
    worst = _worst(scores)
    kept = ts.select(scores, "worst", metrics_file=own, where="worst < 7", per_prompt=1, out=tmp_path / "kept.parquet")
    found = pl.read_parquet(tmp_path / "kept.parquet")
    assert found.height == kept.rows_kept > 3
    assert all(row["worst"] == worst[row["id"]] < 7 for row in found.to_dicts())
    flags = ["--where", "worst < 7", "--per-prompt", "1", "--json"]
    command = _run("select", scores, "--metric", "worst", "--metrics-file", own, *flags)
    assert json.loads(command.stdout)["rows_kept"] == kept.rows_kept
    with pytest.raises(UsageError, match="unknown"):
        ts.select(scores, "worst")


def test_report_ranks_by_it_with_its_direction(own: Path, scores: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("student,teacher,score\ns,A,1\ns,B,2\ns,(unknown),3\n")
    given = {"metrics_file": own, "metrics": "worst", "replicates": 20, "performance": tmp_path / "p.csv"}
    report = ts.report(scores, **given)  # type: ignore[arg-type]
    assert report.to_dict()["metrics"] == {"worst": {"direction": "lower", "unit": "nats"}}
    assert [line.direction for line in report.correlations] == ["lower"]
    assert report.ranking is not None
    values = [line.metrics["worst"].value for line in report.ranking.lines]
    assert values == sorted(values, key=lambda value: value or 0)
    command = _run("report", scores, "--metrics-file", own, "--metric", "worst", "--replicates", "20")
    assert "Teachers by worst (lower is better, nats)" in command.stdout
    assert "worst" in ts.report(scores, metrics_file=own, replicates=5).metrics


def test_list_shows_it(own: Path) -> None:
    listed = json.loads(_run("list", "metrics", "--metrics-file", own, "--json").stdout)["metrics"]
    assert listed[-1]["name"] == "worst"
    assert "largest surprisal" in _run("list", "metrics", "--metrics-file", own).stdout
    assert "worst" not in _run("list", "metrics").stdout


def test_it_may_compare_the_rows_of_a_prompt(scores: Path, tmp_path: Path) -> None:
    within = "lambda n, d, prompt: n - n.max().over(prompt)"
    own = _file(tmp_path, f"{HEAD}METRICS = ({_source(within=within)},)")
    found = ts.select(scores, "worst", metrics_file=own).decisions.filter("kept")
    assert found.group_by("prompt_id").agg(pl.col("worst").max())["worst"].unique().to_list() == [0.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["defines no METRICS"]),
        ("METRICS = 3", ["METRICS is int, not a list"]),
        ("METRICS = [3]", ["METRICS[0] is int"]),
        ("x = 1\nMETRICS = [", ["line 2", "not valid Python"]),
        ("x = 1\n\nx = 1 / 0", ["line 3", "ZeroDivisionError"]),
        ("import nowhere_to_be_found", ["line 1", "nowhere_to_be_found"]),
        ("raise SystemExit(0)", ["SystemExit"]),
        (_one(name="3"), ["METRICS[0]", "name is 3", "a string"]),
        (_one(name='"a b"'), ["'a b'", "letters"]),
        (_one(name='"rsr"'), ["'rsr' is there already", "another name"]),
        (_one(name='"id"'), ["'id'", "another name"]),
        (f"METRICS = [{_source()}, {_source()}]", ["METRICS[1]", "'worst' is there already"]),
        (_one(direction='"up"'), ["direction is 'up'", "'lower', 'higher' or None"]),
        (_one(unit="None"), ["unit is None"]),
        (_one(columns='"student_surprisal"'), ["columns", "a tuple"]),
        (_one(columns="()"), ["columns", "a tuple"]),
        (_one(numerator='pl.col("student_surprisal")'), ["numerator", "a function"]),
        (_one(numerator="lambda: 3"), ["numerator gives int"]),
        (_one(numerator='lambda: pl.col("x").no_such()'), ["numerator fails", "no_such"]),
        (_one(denominator='lambda: pl.col("n_tokens")'), ["denominator reads", "'n_tokens'"]),
        (_one(within="3"), ["within is 3"]),
        (_one(within="lambda n: n"), ["within fails", "TypeError"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, said: Sequence[str], scores: Path, tmp_path: Path) -> None:
    path = _file(tmp_path, HEAD.replace("\n", ";") + text)
    for command in (["list", "metrics"], ["select", scores, "--out", tmp_path / "k.jsonl"], ["report", scores]):
        result = _run(*command, "--metrics-file", path)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert str(path) in result.stderr
        assert all(words in result.stderr for words in said), result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "k.jsonl").exists()


@pytest.mark.parametrize("name", ["nowhere.py", "."])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        known_metrics(tmp_path / name)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"numerator": 'lambda: pl.col("student_surprisal").list.max().mean()'}, "one number for all rows"),
        ({"numerator": 'lambda: pl.col("student_surprisal")'}, "gives List"),
        ({"numerator": 'lambda: pl.col("student_surprisal").str.len_chars()'}, "does not fit the columns"),
        ({"columns": '("nothing",)', "numerator": 'lambda: pl.col("nothing")'}, "the corpus must bring it"),
        (
            {"columns": '("student_collision",)', "numerator": 'lambda: pl.col("student_collision")'},
            "--extra collision",
        ),
    ],
)
def test_what_does_not_suit_the_scores_is_said(fields: dict[str, str], said: str, scores: Path, tmp_path: Path) -> None:
    own = _file(tmp_path, f"{HEAD}METRICS = [{_source(**fields)}]\n")
    with pytest.raises(UsageError, match="'worst'") as caught:
        ts.select(scores, "worst", metrics_file=own, out=tmp_path / "k.jsonl")
    assert said in str(caught.value)
    assert not (tmp_path / "k.jsonl").exists()


def test_values_that_are_no_numbers_are_null(scores: Path, tmp_path: Path) -> None:
    own = _file(tmp_path, f"{HEAD}METRICS = [{_source(denominator='lambda: pl.lit(0)')}]\n")
    selection = ts.select(scores, "worst", metrics_file=own)
    assert selection.rows_kept == 0
    assert selection.dropped["undefined_metric"] > 40
