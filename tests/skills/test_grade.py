"""`trajscore grade`: verdicts by hand, every row accounted for, and the labels that a data set brought as the judge of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.helpers.paths import SHARED
from trajscore.cli import app
from trajscore.errors import UsageError
from trajscore.skills.commands.grade import grade
from trajscore.skills.grading import DECIDED, NO_ANSWER, NO_REFERENCE, UNCLEAR, grade_response

VERDICTS = [
    ("A: 18", "18", True, DECIDED),
    ("A: 26", "18", False, DECIDED),
    ("The answer is $1,234.50.", "1234.5", True, DECIDED),
    ("The answer is 12 or 13.", "12", None, UNCLEAR),
    ("The answer is 18 dollars.", "$18", True, DECIDED),
    ("The answer is 50%", "50", True, DECIDED),
    (r"\boxed{\frac{1}{2}}", "0.5", True, DECIDED),
    (r"\boxed{\frac{1}{3}}", "0.5", False, DECIDED),
    (r"\boxed{x+1}", "1+x", True, DECIDED),
    (r"\boxed{2^3}", "8", True, DECIDED),
    ("Answer: B", "B", True, DECIDED),
    ("Answer: (b) because it is so", "B", True, DECIDED),
    (r"\boxed{\text{C}}", "B", False, DECIDED),
    ("Answer: 7", "B", None, UNCLEAR),
    ("The answer is Paris.", "Paris", True, DECIDED),
    ("The answer is Rome.", "Paris", False, DECIDED),
    ("Nothing at all", "3", None, NO_ANSWER),
    ("<think>The answer is 3", "3", None, NO_ANSWER),
    ("The answer is 3", None, None, NO_REFERENCE),
    ("The answer is 3", "  ", None, NO_REFERENCE),
    ("2 + 2 = 4\n#### 4", "so it is\n#### 4", True, DECIDED),
    ("The answer is " + "9" * 5000, "9", None, UNCLEAR),
    ("The answer is 1/0", "3", None, UNCLEAR),
]


@pytest.mark.parametrize(("response", "reference", "correct", "how"), VERDICTS)
def test_verdicts_by_hand(response: str, reference: str | None, correct: bool | None, how: str) -> None:
    assert grade_response(response, reference) == (correct, how)


def _rows(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(name: str, response: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": response}],
        **more,
    }


def test_every_row_is_written_and_counted(tmp_path: Path) -> None:
    data = _rows(
        tmp_path,
        _row("a", "The answer is 3", gold={"value": 3}, correct=True),
        _row("b", "The answer is 4", gold={"value": 3}, correct=1),
        _row("c", "Nothing", gold={"value": 3}, correct=None),
        _row("d", "The answer is 3", gold={}),
        {"id": "e", "something": "else", "gold": {"value": 3}},
    )
    found = grade(data, reference_field="gold.value", out=tmp_path / "graded.jsonl")
    assert (found.rows, found.right, found.wrong) == (5, 1, 1)
    assert found.rows == found.right + found.wrong + sum(found.undecided.values())
    assert (found.labelled, found.agreeing) == (2, 1)
    assert [line["id"] for line in found.disagreeing_rows] == ["b"]
    assert [line["id"] for line in found.undecided_rows] == ["c", "d", "e"]
    rows = [json.loads(line) for line in (tmp_path / "graded.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, False, None, None, None]
    assert [row.get("correct_before", "-") for row in rows] == [True, 1, None, "-", "-"]
    assert [row["grade"] for row in rows][:4] == [DECIDED, DECIDED, NO_ANSWER, NO_REFERENCE]
    assert rows[0]["messages"][1]["content"] == "The answer is 3"


def test_mistakes_write_nothing(tmp_path: Path) -> None:
    data = _rows(tmp_path, _row("a", "3", gold=3))
    before = data.read_bytes()
    with pytest.raises(UsageError, match="no row has the column 'golden'"):
        grade(data, reference_field="golden", out=tmp_path / "g.jsonl")
    with pytest.raises(UsageError, match="is what DATA reads"):
        grade(data, reference_field="gold", out=data)
    assert data.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.skipif(not (SHARED / "data" / "gsm8k_gpt3.jsonl").exists(), reason="needs the shared data")
def test_it_agrees_with_trusted_labels(tmp_path: Path) -> None:
    data = SHARED / "data" / "gsm8k_gpt3.jsonl"
    arguments = ["grade", str(data), "--reference-field", "answer", "--out", str(tmp_path / "g.jsonl"), "--json"]
    found = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert found["labelled"] == found["right"] + found["wrong"] > 0.99 * found["rows"]
    assert found["agreement"] >= 0.99


def test_files_are_named_and_teachers_with_dots_whole(tmp_path: Path) -> None:
    """Two models of one family were one teacher: `Qwen2.5-7B.jsonl` and `Qwen2.5-72B.jsonl` both became `Qwen2`."""
    for name in ("Qwen2.5-7B", "Qwen2.5-72B"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        line = {"id": 0, "problem": "1 + 1?", "generation": "Answer: 2", "answer": "2"}
        (tmp_path / "raw" / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    out = tmp_path / "g.jsonl"
    arguments = [*("--reference-field", "answer", "--teacher-from", "path", "--id-from", "file"), "--out", str(out)]
    done = CliRunner().invoke(app, ["grade", str(tmp_path / "raw"), *arguments])
    assert done.stdout.replace("\n", "").endswith(f"written: {out}")
    assert {json.loads(line)["teacher"] for line in out.read_text().splitlines()} == {"Qwen2.5-7B", "Qwen2.5-72B"}
