"""Ranking, bootstrap and correlations: hand-computed values, the published tables, pairing, coverage, and every error."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from tests.helpers.paths import SHARED
from tests.helpers.score_tables import random_rows, refused, trajectory, with_every_column, write_folder
from tests.metrics.test_metrics import FIELDS
from trajscore.errors import DataError, UsageError
from trajscore.estimates.bootstrap import GroupSums, interval, replicate, share_best
from trajscore.estimates.correlation import average_ranks, pearson, spearman
from trajscore.metrics import dataset_value
from trajscore.ranking.report import report
from trajscore.ranking.result import Report
from trajscore.ranking.terminal import report_tables
from trajscore.scores import scan
from trajscore.scores.source import ScoreSource, open_by_student

PUBLISHED = SHARED / "rsr_published_tables.json"
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"{PUBLISHED} is not here")
PRINTED = [0.855, 0.845, 0.918, 0.818, 0.845]
RECOMPUTED = [0.855, 0.845, 0.888, 0.829, 0.815]


def _published() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(PUBLISHED.read_text())
    return tables


def _numbers(result: Report) -> str:
    """Everything but where the scores came from."""
    numbers = result.to_dict()
    for student in numbers["students"]:
        del student["provenance"]
    return json.dumps(numbers)


def _lines(result: Report) -> dict[str, Any]:
    assert result.ranking is not None
    return {line.teacher: line for line in result.ranking.lines}


@needs_published
def test_published_dataset_values_are_the_ratio_of_means() -> None:
    cells = 0
    for student in _published()["students"].values():
        triples = zip(student["Avg-Rank (clipped)"], student["Avg-Surprisal"], student["RSR"], strict=True)
        for rank, surprisal, printed in triples:
            value = dataset_value(pl.Series([rank, rank]), pl.Series([surprisal, surprisal]))
            assert value == pytest.approx(printed, abs=0.0035)
            cells += 1
    assert cells == 55


@needs_published
def test_published_correlations() -> None:
    students = _published()["students"].values()
    for student, printed, recomputed in zip(students, PRINTED, RECOMPUTED, strict=True):
        value = spearman(student["RSR"], student["Perf"])
        assert value is not None
        assert -value == pytest.approx(printed, abs=0.035)
        assert -value == pytest.approx(recomputed, abs=0.002)


@needs_published
def test_published_tables_through_the_csv_files(tmp_path: Path) -> None:
    tables = _published()
    values, scores = ["student,teacher,rsr,length,G-Norm"], ["student,teacher,score"]
    for name, student in tables["students"].items():
        for number, teacher in enumerate(tables["teachers"]):
            length = tables["student_agnostic"]["Avg-Token Length"][number]
            values.append(f"{name},{teacher},{student['RSR'][number]},{length},{student['G-Norm'][number]}")
            scores.append(f"{name},{teacher},{student['Perf'][number]}")
    (tmp_path / "values.csv").write_text("\n".join(values))
    (tmp_path / "scores.csv").write_text("\n".join(scores))
    result = report(table=tmp_path / "values.csv", performance=tmp_path / "scores.csv")
    assert len(result.correlations) == 6 * 3
    mean = {line.metric: line for line in result.correlations if line.student == "(mean)"}
    assert mean["rsr"].spearman == pytest.approx(-0.847, abs=0.002)
    assert mean["rsr"].agreement == pytest.approx(0.847, abs=0.002)
    assert mean["rsr"].pearson == pytest.approx(-0.794, abs=0.01)
    assert mean["length"].spearman == pytest.approx(0.53, abs=0.02)
    assert mean["length"].agreement == mean["length"].spearman
    assert mean["G-Norm"].agreement is None
    assert mean["G-Norm"].spearman == pytest.approx(-0.55, abs=0.03)


def test_average_ranks_share_ties() -> None:
    assert average_ranks(np.array([10.0, 20.0, 10.0, 30.0, 10.0])).tolist() == [2.0, 4.0, 2.0, 5.0, 2.0]


def test_spearman_with_ties_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: deviations -1.5 0 0 1.5 and -1.5 .5 -.5 1.5; 4.5 / sqrt(4.5 * 5).
    assert spearman([1.0, 5.0, 5.0, 9.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(4.5 / math.sqrt(22.5))
    # Control: the formula 1 - 6 sum d^2 / (n^3 - n) is wrong with ties.
    assert spearman([1.0, 5.0, 5.0, 9.0], [1.0, 3.0, 2.0, 4.0]) != pytest.approx(1 - 6 * 0.5 / 60)


def test_pearson_by_hand() -> None:
    # Deviations -1 0 1 and -2 1 1: 3 / sqrt(2 * 6).
    assert pearson([1.0, 2.0, 3.0], [0.0, 3.0, 3.0]) == pytest.approx(3 / math.sqrt(12))
    assert pearson([1e200, 2e200, 3e200], [1e-200, 2e-200, 3e-200]) == pytest.approx(1.0)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlations_that_are_undefined(correlation: Any) -> None:
    assert correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert correlation([], []) is None
    assert correlation([0.1, 0.1, 0.1], [1.0, 2.0, 3.0]) is None
    assert correlation([1.0, None, 3.0, float("nan")], [1.0, 2.0, 3.0, 4.0]) is None
    assert correlation([1.0, None, 3.0, 4.0], [1.0, 9.0, 3.0, 4.0]) == pytest.approx(1.0)


def test_ranking_by_hand(tmp_path: Path) -> None:
    rows = [
        trajectory(0, [10] * 4, [1.0] * 4, teacher="long", prompt_id="p", correct=True),
        trajectory(1, [1], [4.0], teacher="long", prompt_id="q", correct=None),
        trajectory(2, [8, 8], [1.0, 1.0], teacher="short", prompt_id="p", correct=False),
        trajectory(3, [8], [2.0], teacher="short", prompt_id="r", correct=True),
        refused(4, "too_long", teacher="short", prompt_id="q"),
        trajectory(5, [1], [0.0], teacher="certain", prompt_id="p"),
        refused(6, "empty_response", teacher="absent", prompt_id="p"),
        trajectory(7, [8], [1.0], teacher=None, prompt_id="p"),
    ]
    result = report(write_folder(tmp_path / "s", rows), replicates=50)
    assert result.ranking is not None
    names = [line.teacher for line in result.ranking.lines]
    # 11/5, 16/3, 8, then the undefined ones by name.
    assert names == ["long", "short", "(unknown)", "absent", "certain"]
    lines = _lines(result)
    assert lines["long"].metrics["rsr"].value == pytest.approx(11 / 5)
    assert lines["short"].metrics["rsr"].value == pytest.approx(16 / 3)
    assert lines["certain"].metrics["rsr"].value is None
    assert lines["certain"].metrics["surprisal"].value == 0.0
    assert (lines["short"].rows, lines["short"].scored, lines["short"].refused) == (3, 2, {"too_long": 1})
    assert lines["short"].share_correct == 0.5
    assert lines["long"].share_correct == 1.0
    assert lines["certain"].share_correct is None
    assert lines["long"].mean_length == 2.5
    assert lines["absent"].mean_length is None
    assert lines["absent"].prompts == 0
    # No teacher has enough prompts for a probability.
    assert [line.probability_best for line in result.ranking.lines] == [None] * 5
    assert (result.ranking.prompts, result.ranking.shared_prompts) == (3, 1)
    assert any("absent" in note for note in result.notes)


def test_each_column_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All metrics, coefficients of the corpus and what is followed along the trajectory: every column in one pass."""
    passes: list[set[str]] = []

    def seen(batch: pl.DataFrame) -> pl.DataFrame:
        passes.append(set(batch.columns))
        return batch

    def opened(scores: Any) -> list[ScoreSource]:
        return [
            replace(each, frame=each.frame.map_batches(seen, projection_pushdown=True))
            for each in open_by_student(scores)
        ]

    rows = with_every_column(random_rows(60, seed=4), seed=4)
    folder = write_folder(tmp_path / "s", rows, input_fields=FIELDS)
    monkeypatch.setattr("trajscore.ranking.report.open_by_student", opened)
    made = report(folder, replicates=9)
    assert {"rsr", "aslec_casl", "rule_quality", "lark", "k3"} <= set(made.metrics)
    assert made.students[0].positions
    read = [name for names in passes for name in names]
    assert {name for name in set(read) if read.count(name) > 1} == set()
    assert {"student_surprisal", "sentence", "id", "response_words"} <= set(read)


def test_a_frame_may_turn_its_rows_around(tmp_path: Path) -> None:
    """Rows that come in another order in each pass keep their own values."""
    folder = write_folder(tmp_path / "s", random_rows(60, seed=4))
    turns: list[int] = []

    def turned(batch: pl.DataFrame) -> pl.DataFrame:
        turns.append(len(turns))
        return batch.reverse() if len(turns) % 2 else batch

    expected = report(folder, metrics=["rsr", "length"], replicates=9)
    made = report(scan(folder).map_batches(turned), metrics=["rsr", "length"], replicates=9)
    assert len(turns) > 1
    assert made.frame.drop("student").equals(expected.frame.drop("student"))


def test_higher_is_better_sorts_the_other_way_and_ties_go_by_name(tmp_path: Path) -> None:
    rows = [trajectory(n, [1] * k, [1.0] * k, teacher=t) for n, (t, k) in enumerate([("b", 2), ("c", 5), ("a", 2)])]
    result = report(write_folder(tmp_path / "s", rows), metrics="length")
    assert list(_lines(result)) == ["c", "a", "b"]
    assert result.metrics == ("length",)


def test_reproducible_and_independent_of_parts_and_order(tmp_path: Path) -> None:
    rows = random_rows(120, seed=7)
    first = report(write_folder(tmp_path / "a", rows, part_rows=11), seed=3, replicates=200)
    again = report(write_folder(tmp_path / "b", rows[::-1], part_rows=120), seed=3, replicates=200)
    assert _numbers(first) == _numbers(again)
    assert first.ranking == report(scan(tmp_path / "a"), seed=3, replicates=200).ranking
    other = report(tmp_path / "a", seed=4, replicates=200)
    assert _lines(first)["A"].metrics["rsr"].value == _lines(other)["A"].metrics["rsr"].value
    assert _lines(first)["A"].metrics["rsr"].low != _lines(other)["A"].metrics["rsr"].low


def test_intervals_hold_the_value_and_widen_with_confidence(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", random_rows(200, seed=8))
    narrow, wide = report(folder, confidence=0.5), report(folder, confidence=0.99)
    for teacher, line in _lines(narrow).items():
        for name, each in line.metrics.items():
            outer = _lines(wide)[teacher].metrics[name]
            assert outer.low < each.low < each.value < each.high < outer.high


def test_one_prompt_has_no_interval_and_says_why(tmp_path: Path) -> None:
    rows = [trajectory(n, [2], [1.0], prompt_id="p", teacher="only") for n in range(3)]
    result = report(write_folder(tmp_path / "s", rows))
    line = _lines(result)["only"]
    assert line.metrics["rsr"].value == 2.0
    assert line.metrics["rsr"].low is None
    assert line.probability_best is None
    assert any("fewer than 8 prompts" in note for note in result.notes)


@pytest.mark.parametrize("prompts", [9, 2])
def test_a_terminal_holds_twenty_teachers_and_more(prompts: int, tmp_path: Path) -> None:
    """At most 40 lines of 80 columns, the recommendation last, and every number whole beside a name of 300 letters."""
    names = ["a" * 300, "Teacher-Instruct-70B\n", *(f"Teacher-Number-{n}-Instruct-70B" for n in range(23))]
    rows = [
        trajectory(n, [2 + n % 7], [1.0 + n % 5], prompt_id=f"p{n // 25}", teacher=names[n % 25], correct=n % 2 == 0)
        for n in range(25 * prompts)
    ]
    rows += [refused(1000 + n, "too_long", teacher=name, prompt_id="p0") for n, name in enumerate(names)]
    made = report(write_folder(tmp_path / "s", rows, part_rows=500), replicates=20)
    console = Console(file=io.StringIO(), width=80)
    console.print(*report_tables(made), sep="\n")
    lines = console.file.getvalue().rstrip().splitlines()  # type: ignore[attr-defined]
    assert len(lines) <= 40
    sentence = made.students[0].recommendation.sentence
    said = " ".join(line.strip() for line in lines)
    assert " ".join(sentence.split()) in " ".join(said.split()), said
    assert " ".join(said.split()).endswith(" ".join(sentence.split()))
    shown = [line for line in lines if line.startswith(("aaaa", "Teacher-")) and line.endswith("%    10")]
    assert prompts == 2 or len(shown) == 20, "no number is cut off"
    assert "... and 5 more: --csv or --out has all" in lines
    assert len(made.notes) == (prompts == 2), "one note for all teachers of too few prompts"


def test_nothing_scored(tmp_path: Path) -> None:
    result = report(write_folder(tmp_path / "s", [refused(0, "too_long"), refused(1, "too_long")]))
    assert _lines(result)["T"].refused == {"too_long": 2}
    assert _lines(result)["T"].metrics["rsr"].value is None


def test_a_frame_without_teachers() -> None:
    frame = pl.LazyFrame({"id": ["a", "b"], "prompt_id": ["p", "q"], "status": ["ok", "ok"], "n_tokens": [3, 5]})
    result = report(frame)
    assert list(_lines(result)) == ["(unknown)"]
    assert result.metrics == ("length",)
    assert result.student is None


def test_bootstrap_equals_a_loop() -> None:
    draw = np.random.default_rng(5)
    prompts = np.array([0, 2, 3, 6])
    numerators, denominators = draw.random((4, 2)), draw.random((4, 2))
    values = replicate([GroupSums(prompts, numerators, denominators)], prompts=7, replicates=40, seed=9)
    generator = np.random.default_rng(9)
    for row in values[:, 0]:
        chosen = generator.integers(0, 7, 7)
        places = [int(np.flatnonzero(prompts == prompt)[0]) for prompt in chosen if prompt in prompts]
        if places:
            assert row == pytest.approx(numerators[places].sum(axis=0) / denominators[places].sum(axis=0))
        else:
            assert np.isnan(row).all()


def test_bootstrap_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    group = GroupSums(np.arange(50), draw.random((50, 3)), draw.random((50, 3)))
    whole = replicate([group], 50, 30, seed=2)
    monkeypatch.setattr("trajscore.estimates.bootstrap._CHUNK", 70)
    assert np.allclose(whole, replicate([group], 50, 30, seed=2), rtol=1e-14)
    monkeypatch.setattr("trajscore.estimates.bootstrap._KEPT", 0)
    assert np.allclose(whole, replicate([group], 50, 30, seed=2), rtol=1e-14), "draws that are not kept"


def test_pairing_makes_a_constant_difference_certain(tmp_path: Path) -> None:
    # Prompts differ wildly, but on every prompt `better` is a little better: paired, no replicate can disagree.
    rows = []
    for number in range(40):
        for extra, teacher in ((0, "better"), (1, "worse")):
            rows.append(
                trajectory(2 * number + extra, [1 + number + extra], [1.0], teacher=teacher, prompt_id=f"p{number}")
            )
    lines = _lines(report(write_folder(tmp_path / "s", rows, part_rows=80)))
    assert lines["better"].probability_best == 1.0
    assert lines["better"].metrics["rsr"].high > lines["worse"].metrics["rsr"].low


def test_share_best_splits_ties_and_skips_empty_replicates() -> None:
    nan = float("nan")
    values = np.array([[1.0, 1.0, 2.0], [3.0, nan, 2.0], [nan, nan, nan]])
    assert share_best(values, lower_is_better=True) == [0.25, 0.25, 0.5]
    assert share_best(values, lower_is_better=False) == [0.5, 0.0, 0.5]
    assert share_best(np.full((2, 2), nan), lower_is_better=True) == [None, None]
    assert interval(np.array([nan, nan]), 0.9, 5) is None


def _csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rows = [trajectory(n, [n + 1], [1.0], teacher=t) for n, t in enumerate("ABCDE")]
    return write_folder(tmp_path / "scores", rows)


def test_performance_adds_correlations(scores: Path, tmp_path: Path) -> None:
    measured = {
        "student-1b,A": 40,
        "student-1b,B": 30,
        "student-1b,C": 20,
        "student-1b,D": 10,
        "student-1b,E": "",
        "other,A": 1,
    }
    lines = "student,teacher,score\n" + "".join(f"{names},{score}\n" for names, score in measured.items())
    result = report(scores, performance=_csv(tmp_path / "p.csv", lines))
    by_metric = {line.metric: line for line in result.correlations}
    assert by_metric["rsr"].spearman == pytest.approx(-1.0)
    assert by_metric["rsr"].agreement == pytest.approx(1.0)
    assert by_metric["rsr"].teachers == 4
    assert by_metric["surprisal"].spearman is None
    assert any("left out: E" in note for note in result.notes)
    assert len({line.student for line in result.correlations}) == 1
    assert result.best_predictor == "rsr predicts best here: agreement 1.00 over 4 teachers of one student."


def test_three_distinct_values_are_no_correlation(scores: Path, tmp_path: Path) -> None:
    """Three teachers rank alike by chance one time in three; so do five whose scores are one of three values."""
    three = "student,teacher,score\nstudent-1b,A,3\nstudent-1b,B,2\nstudent-1b,C,1\n"
    tied = "student,teacher,score\n" + "".join(f"student-1b,{t},{n // 2}\n" for n, t in enumerate("ABCDE"))
    for text in (three, tied):
        result = report(scores, performance=_csv(tmp_path / "p.csv", text))
        assert {line.spearman for line in result.correlations} == {None}
        assert result.best_predictor is None


def test_one_student_on_each_side_match_whatever_their_names(scores: Path, tmp_path: Path) -> None:
    lines = "student,teacher,score\nStudent/1B,A,1\nStudent/1B,B,2\nStudent/1B,C,3\n"
    result = report(scores, performance=_csv(tmp_path / "p.csv", lines))
    assert result.correlations[0].teachers == 3
    assert any("taken as the same" in note for note in result.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student,teacher,scores\na,b,1\n", "score"),
        ("student,teacher,score\n", "no score"),
        ("student,teacher,score\nstudent-1b,A,good\n", "line 2.*good"),
        ("student,teacher,score\nstudent-1b,A,nan\n", "finite"),
        ("student,teacher,score\nstudent-1b,A,1\nstudent-1b,A,2\n", "twice"),
        ("student,teacher,score\nstudent-1b,,1\n", "line 2.*teacher"),
        ("student,teacher,score\nx,A,1\ny,A,2\n", "student-1b"),
    ],
)
def test_wrong_performance_files(scores: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        report(scores, performance=_csv(tmp_path / "p.csv", text))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.0}, "--confidence"),
        ({"confidence": 0.0}, "--confidence"),
        ({"replicates": 0}, "--replicates"),
        ({"seed": -1}, "--seed"),
        ({"metrics": ["rssr"]}, "rsr"),
        ({"performance": "nowhere.csv"}, "nowhere"),
        ({"table": "values.csv"}, "not both"),
    ],
)
def test_wrong_settings(scores: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        report(scores, **settings)


def test_wrong_tables(tmp_path: Path) -> None:
    performance = _csv(tmp_path / "p.csv", "student,teacher,score\ns,A,1\ns,B,2\ns,C,3\n")
    values = _csv(tmp_path / "v.csv", "student,teacher,rsr\ns,A,3\ns,B,\ns,C,1\n")
    assert report(table=values, performance=performance).correlations[0].teachers == 2
    with pytest.raises(UsageError, match="--performance"):
        report(table=values)
    with pytest.raises(UsageError, match="rsr"):
        report(table=values, performance=performance, metrics="rsrr")
    with pytest.raises(UsageError, match="metric"):
        report(table=_csv(tmp_path / "e.csv", "student,teacher\ns,A\n"), performance=performance)
    with pytest.raises(UsageError, match="either"):
        report()
    (tmp_path / "b.csv").write_bytes(b"student,teacher,score\n\xff\xfe,A,1\n")
    with pytest.raises((DataError, UsageError)):
        report(table=values, performance=tmp_path / "b.csv")
