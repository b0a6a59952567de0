"""`skills pass-rate`: rates are counts, prompts without a verdict have none, and `paced` weighs by what was joined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.paths import DATA
from tests.helpers.score_tables import random_rows, refused, trajectory, write_folder
from tests.helpers.world_of_data import problem_of, world
from trajscore.cli import app
from trajscore.errors import DataError, UsageError

ANSWERS: list[dict[str, Any]] = [
    {"question_id": "prompt-0", "correct": [True, False, False, False]},
    {"question_id": "prompt-1", "correct": [None, None]},
    {"question_id": "elsewhere", "correct": [True]},
]


def _answers(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Nine rows of three prompts, of which the last one is refused, in parts of four."""
    return write_folder(
        tmp_path / "scores",
        [*(trajectory(n, [1] * (n + 1), [1.0] * (n + 1)) for n in range(8)), refused(8, "too_long")],
    )


def test_by_hand(scores: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in scores.iterdir()}
    answers = _answers(tmp_path / "answers.jsonl", ANSWERS)
    made = ts.pass_rates(answers, scores=scores, out=tmp_path / "rated")
    assert made.to_dict() == {
        "rows": 9, "rated": 3, "without": {"no_verdict": 3, "not_answered": 3}, "prompts": 3, "rated_prompts": 1, "right": 1,
        "samples": 4, "unused_questions": 1,
    }  # fmt: skip
    assert made.frame.rows() == [
        ("prompt-0", 1, 4, 0.25),
        ("prompt-1", None, None, None),
        ("prompt-2", None, None, None),
    ]
    rows = ts.scan(tmp_path / "rated").collect()
    assert rows["pass_rate"].to_list() == [0.25, None, None] * 3
    assert rows["pass_rate_samples"].to_list() == [4, None, None] * 3
    assert rows.drop("pass_rate", "pass_rate_samples").equals(ts.scan(scores).collect())
    assert {path.name: path.read_bytes() for path in scores.iterdir()} == before
    without = "tokenizer.json is missing: tokens cannot be shown as text"  # of these scores, which no model made
    assert ts.verify(tmp_path / "rated").problems == ts.verify(scores).problems == [without]
    old, new = (pq.read_schema(each / "part-00001.parquet") for each in (scores, tmp_path / "rated"))
    assert old.metadata.keys() == new.metadata.keys()
    assert old.metadata[b"trajscore.run"] != new.metadata[b"trajscore.run"]
    # The same again changes nothing, and two files count together.
    assert ts.pass_rates(answers, scores=scores, out=tmp_path / "rated").to_dict() == made.to_dict()
    more = _answers(
        tmp_path / "more.jsonl",
        [{"question_id": "prompt-0", "correct": [True, None]}, {"question_id": "prompt-2", "correct": False}],
    )
    both = ts.pass_rates([answers, more], scores=scores, out=tmp_path / "both").frame
    assert both["pass_rate"].to_list() == [2 / 5, None, 0.0]


def test_paced_weighs_by_it(scores: Path, tmp_path: Path) -> None:
    verdicts = [*ANSWERS[:1], {"question_id": "prompt-1", "correct": [True, True]}]
    rated = tmp_path / "rated"
    ts.pass_rates(_answers(tmp_path / "answers.jsonl", verdicts), scores=scores, out=rated)
    with pytest.raises(UsageError, match="None in the row 'id-0005'"):
        ts.select(rated, preset="paced")
    kept = ts.select(rated, preset="paced", where="pass_rate IS NOT NULL", out=tmp_path / "kept.jsonl").frame.collect()
    # p (1 - p) is 3/16 three times and 0 three times; the mean is 1.
    assert dict(kept.select("prompt_id", "sample_weight").iter_rows()) == {"prompt-0": 2.0, "prompt-1": 0.0}
    first = json.loads((tmp_path / "kept.jsonl").read_text().splitlines()[0])
    assert (first["pass_rate"], first["pass_rate_samples"]) == (0.25, 4)


@pytest.mark.parametrize("part_rows", [1, 3, 50])
def test_rates_equal_counts_however_parts_are_cut(tmp_path: Path, part_rows: int) -> None:
    rows = random_rows(40, seed=5)
    scores = write_folder(tmp_path / "scores", rows, part_rows=part_rows)
    drawn = [
        {
            "question_id": f"prompt-{n}",
            "correct": [(n * k) % 3 == 0 or None if k % 4 == 3 else (n + k) % 2 == 0 for k in range(n)],
        }
        for n in range(0, 10, 2)
    ]
    made = ts.pass_rates(_answers(tmp_path / "answers.jsonl", drawn), scores=scores, out=tmp_path / "rated")
    expected = []
    for row in rows:
        said = [
            each
            for answer in drawn
            if answer["question_id"] == row["prompt_id"]
            for each in answer["correct"]
            if each is not None
        ]
        expected.append(said.count(True) / len(said) if said else None)
    assert None in expected
    assert len(set(expected)) > 3
    assert ts.scan(tmp_path / "rated").collect()["pass_rate"].to_list() == expected
    assert made.rated == sum(each is not None for each in expected) == made.rows - sum(made.without.values())


def test_what_is_refused_writes_nothing(scores: Path, tmp_path: Path) -> None:
    answers = _answers(tmp_path / "answers.jsonl", ANSWERS)
    out = tmp_path / "rated"
    with pytest.raises(UsageError, match="none of its prompts has an answer with a verdict"):
        ts.pass_rates(_answers(tmp_path / "others.jsonl", ANSWERS[1:]), scores=scores, out=out)
    with pytest.raises(UsageError, match="row 1: correct is 'yes'"):
        ts.pass_rates(
            _answers(tmp_path / "wrong.jsonl", [{"question_id": "prompt-0", "correct": "yes"}]), scores=scores, out=out
        )
    with pytest.raises(UsageError, match="no field 'question_id'"):
        ts.pass_rates(_answers(tmp_path / "else.jsonl", [{"correct": True}]), scores=scores, out=out)
    with pytest.raises(UsageError, match="is what --scores reads"):
        ts.pass_rates(answers, scores=scores, out=scores)
    assert not out.exists()
    ts.pass_rates(answers, scores=scores, out=out)
    with pytest.raises(UsageError, match="has a column 'pass_rate' already"):
        ts.pass_rates(answers, scores=out, out=tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
    other = _answers(tmp_path / "other.jsonl", [{"question_id": "prompt-0", "correct": [True]}])
    with pytest.raises(UsageError, match="other settings"):
        ts.pass_rates(other, scores=scores, out=out)
    ts.pass_rates(other, scores=scores, out=out, overwrite=True)
    assert ts.scan(out).collect()["pass_rate"].to_list() == [1.0, None, None] * 3
    part = scores / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(DataError, match="part-00001"):
        ts.pass_rates(other, scores=scores, out=tmp_path / "new")


def test_from_the_students_answers_to_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="the student answers")
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (DATA / "trajectories.jsonl").read_text("utf-8").splitlines()]
    ids = list(dict.fromkeys(row["prompt_id"] for row in rows))
    chosen = [row for row in rows if row["prompt_id"] in ids[:4] and row["teacher"] in ("plain", "terse")]
    _answers(tmp_path / "corpus.jsonl", chosen)
    student = str(DATA / "models" / "student")
    ts.score("corpus.jsonl", student, "scores", engine="hf")
    ts.answer_questions(
        "corpus.jsonl",
        student=student,
        out="answers.jsonl",
        samples=3,
        temperature=1.0,
        max_tokens=64,
        limit=6,
        engine="hf",
    )
    result = CliRunner().invoke(app, ["skills", "pass-rate", "answers.jsonl", "--scores", "scores", "--out", "rated"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Pass rates: 6 of 8 rows; 2 not_answered")
    answered = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    right = {
        row["question_id"]: sum(world.is_correct(problem_of(row["question"]), each) for each in row["responses"])
        for row in answered
    }
    assert ts.verify("rated").sound
    frame = ts.scan("rated").collect()
    assert dict(frame.select("prompt_id", "pass_rate").iter_rows()) == {
        name: right[name] / 3 if name in right else None for name in ids[:4]
    }
    assert frame["pass_rate_samples"].drop_nulls().unique().to_list() == [3]
