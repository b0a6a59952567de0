"""`report --items`: what item response says, wherever the report says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import trajscore as ts
from tests.estimates.test_item_response import Simulated
from tests.helpers.score_tables import trajectory, write_folder
from trajscore.cli import app
from trajscore.errors import UsageError
from trajscore.estimates.item_response import fit_items
from trajscore.ranking.items import NO_CORRECT, ONE_TEACHER, item_response


@pytest.fixture(scope="module")
def truth() -> Simulated:
    """Twelve teachers on forty prompts, the first six with labels in reverse, each answered four times or not at all."""
    return Simulated(2, teachers=12, prompts=40, bad=6, samples=4, missing=0.1)


@pytest.fixture(scope="module")
def scores(truth: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, Any]] = []
    for (i, j), right in np.ndenumerate(truth.right_IJ):
        for sample in range(int(truth.answers_IJ[i, j])):
            names = {"teacher": f"T{i:02d}", "prompt_id": f"p{j:02d}", "correct": sample < right}
            rows.append(trajectory(len(rows), [1, 2], [1.0, 2.0], **names))
    return write_folder(tmp_path_factory.mktemp("items") / "scores", rows, part_rows=500)


def test_terminal_page_json_and_csv_say_the_same(truth: Simulated, scores: Path, tmp_path: Path) -> None:
    arguments = ["report", str(scores), "--items", "--metric", "rsr", "--replicates", "20"]
    arguments += [
        "--out",
        str(tmp_path / "r.html"),
        "--csv",
        str(tmp_path / "r.csv"),
        "--tidy",
        str(tmp_path / "t.csv"),
    ]
    said = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["students"][0]["items"]
    found = fit_items(truth.right_IJ, truth.answers_IJ, 0.9)
    abilities = {line["teacher"]: line for line in said["abilities"]}
    assert [abilities[f"T{i:02d}"]["ability"] for i in range(12)] == pytest.approx(list(found.ability_I))
    assert [line["ability"] for line in said["abilities"]] == sorted(found.ability_I, reverse=True)
    assert said["undefined"] is None
    suspect = [line["part"] for line in said["items"] if line["suspect"]]
    assert len(suspect) >= 3
    assert set(suspect) <= {f"p{j:02d}" for j in range(6)}
    assert [line["rows"] for line in said["items"] if line["part"] == "p00"] == [truth.answers_IJ[:, 0].sum()]
    first = said["abilities"][0]
    table = pl.read_csv(tmp_path / "r.csv").filter(teacher=first["teacher"]).row(0, named=True)
    assert [table[name] for name in ("ability", "ability_low", "ability_high")] == pytest.approx(
        [first["ability"], first["low"], first["high"]]
    )
    tidy = pl.read_csv(tmp_path / "t.csv", infer_schema=False)
    line = tidy.filter(teacher=first["teacher"], quantity="abilities.ability")
    assert [float(value) for value in line["value"]] == pytest.approx([first["ability"]])
    page = (tmp_path / "r.html").read_text()
    assert page.count('aria-label="Suspect prompts"') == page.count('href="#items"') == 1
    shown = page.partition('aria-label="Suspect prompts"')[2].partition("</table>")[0]
    assert all(name in shown for name in suspect)
    terminal = CliRunner().invoke(app, arguments).stdout
    assert "Item response: log-odds on a middling" in terminal
    assert f"{len(suspect)} of 40 prompts rank the teachers in reverse" in terminal
    plain = ts.report(scores, metrics=["rsr"], replicates=20)
    assert "ability" not in plain.frame.columns
    assert plain.students[0].items is None


def _table(*rows: tuple[str, str, bool | None]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema={"teacher": pl.String, "prompt_id": pl.String, "correct": pl.Boolean}, orient="row"
    )


def test_what_is_undefined_says_why(scores: Path) -> None:
    one = item_response(_table(("A", "p", True), ("A", "q", False)), 0.9)
    assert (one.undefined, one.abilities[0].ability, one.abilities[0].correct) == (ONE_TEACHER, None, 0.5)
    right = item_response(_table(("A", "p", True), ("B", "p", True), ("B", "q", None)), 0.9)
    assert right.undefined == ONE_TEACHER
    assert [each.part for each in right.items] == ["p"]
    assert not right.items[0].suspect
    unlabelled = item_response(_table(("A", "p", None)).drop("correct"), 0.9)
    assert (unlabelled.undefined, unlabelled.items, unlabelled.abilities[0].rows) == (NO_CORRECT, (), 0)
    assert item_response(_table(("A", "p", None)), 0.9).undefined == NO_CORRECT
    some = [
        ("A", "p", True),
        ("A", "q", False),
        ("B", "q", True),
        ("B", "r", False),
        ("C", "p", True),
        ("C", "r", True),
    ]
    three = item_response(_table(*some), 0.9)
    assert [each.teacher for each in three.abilities][2] == "C"
    assert three.abilities[2].ability is None
    assert three.notes[0] == "always right, so without a finite ability: C"
    assert three.notes[1].startswith("no prompt has labels of all teachers")
    bare = CliRunner().invoke(app, ["report", str(scores), "--items", "--metric", "rsr", "--replicates", "2"]).stdout
    assert "undefined" not in bare
    with pytest.raises(UsageError, match="--items needs scores"):
        ts.report(table="t.csv", items=True)
