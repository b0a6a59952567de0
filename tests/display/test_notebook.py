"""How results show themselves: short, whatever they hold, and never as markup of a data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import trajscore as ts
from tests.helpers.paths import DATA
from tests.helpers.score_tables import random_rows, trajectory, write_folder
from tests.ranking.test_page import HOSTILE
from tests.viewing.test_inspect import TOKENIZER
from trajscore.errors import UsageError
from trajscore.metrics import METRICS
from trajscore.viewing.terminal import token_parts
from trajscore.viewing.tokens import Statistic, TokenView


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = random_rows(200, seed=2, teachers=(HOSTILE, "B", None))
    for row in rows:
        if row["status"] == "ok":
            row["teacher_sentence_logprob"] = [-0.5]
            row["messages"][0]["content"] = HOSTILE
    made = write_folder(
        tmp_path_factory.mktemp("n") / "scores", rows, part_rows=100, extra=("teacher_sentence_logprob",)
    )
    shutil.copy(TOKENIZER, made)
    return made


def _results(folder: Path) -> dict[str, Any]:
    return {
        "report": ts.report(folder, replicates=20),
        "select": ts.select(folder, per_prompt=1),
        "mask": ts.mask(folder, "entropy", keep=0.5),
        "trace": ts.trace(folder, text=False),
        "inspect": ts.inspect(folder, best=5),
    }


def test_every_result_is_shown_in_a_few_lines_and_at_most_20_kb(folder: Path) -> None:
    for name, result in _results(folder).items():
        assert 0 < len(repr(result).splitlines()) <= 8, name
        assert len(repr(result)) < 3000, name
        html = result._repr_html_()
        assert len(html.encode()) <= 20_000, name
        assert "<script" not in html, name
        assert "\x1b" not in html + repr(result), name
        frame = result.frame
        assert isinstance(frame, pl.DataFrame | pl.LazyFrame), name
        assert frame.lazy().select(pl.len()).collect().item() > 0, name


def test_every_result_draws_itself(folder: Path, tmp_path: Path) -> None:
    results = _results(folder)
    for name, result in results.items():
        if name != "trace":  # whose rows here have one sentence
            result.plot().save(tmp_path / f"{name}.svg")
            drawn = (tmp_path / f"{name}.svg").read_text("utf-8")
            assert "<svg" in drawn, name
            assert "<b>" not in drawn, "text of a data set is no markup"
        with pytest.raises(UsageError, match="no plot 'whay'"):
            result.plot("whay")


def test_what_was_scored_shows_itself(tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(
        json.dumps({"prompt": "1+1?", "response": "2"}) + "\n" + json.dumps({"prompt": "a", "response": ""}) + "\n"
    )
    summary = ts.score(corpus, DATA / "models" / "student", tmp_path / "s", engine="hf", max_refused=1.0)
    assert "2 rows = 1 scored + 1 refused" in repr(summary)
    assert "empty_response: 1, first row 1" in repr(summary)
    assert "empty_response" in summary._repr_html_()
    assert summary.frame.select("status").collect()["status"].to_list() == ["ok", "empty_response"]
    assert {row["name"]: row["value"] for row in _values(summary.plot())} == {"scored": 1, "empty_response": 1}


def test_a_picture_shows_what_the_result_holds(folder: Path, tmp_path: Path) -> None:
    selection = ts.select(folder, top=10)
    shares = [row for row in _values(selection.plot("teachers")) if "series" in row]
    kept = selection.frame.collect()["teacher"].value_counts()["count"] / 10
    assert sorted(row["value"] for row in shares if row["series"] == "kept" and row["value"]) == pytest.approx(
        sorted(kept)
    )
    assert sum(row["value"] for row in shares if row["series"] == "scored") == pytest.approx(1)
    masking = ts.mask(folder, "entropy", keep=0.5)
    labels = masking.frame.collect()["labels"].to_list()
    last = [label != -100 for row in labels for label in row[-(-9 * len(row) // 10) :]]
    drawn = {row["name"]: row["value"] for row in _values(masking.plot()) if "value" in row}
    assert drawn["10. tenth"] == pytest.approx(sum(last) / len(last))
    seen = ts.inspect(folder, best=2)
    assert seen.plot().to_dict() == seen.plot(seen.by).to_dict()
    long_folder = write_folder(tmp_path / "long", [trajectory(0, [7] * 5000, [1.5] * 5000)])
    shutil.copy(TOKENIZER, long_folder)
    long = ts.inspect(long_folder, best=1, by="rank")
    assert {row["y"] for row in _values(long.plot("student_rank")) if "y" in row} == {7.0}


def _values(chart: Any) -> list[dict[str, Any]]:
    return [row for rows in chart.to_dict()["datasets"].values() for row in json.loads(rows)]


def test_tokens_hold_every_scored_token_with_its_text(folder: Path) -> None:
    found = ts.tokens(folder)
    scores = ts.scan(folder).filter(pl.col("status") == "ok").collect()
    assert found.height == scores["n_tokens"].sum()
    first = scores.row(0, named=True)
    own = found.filter(pl.col("id") == first["id"])
    assert own["student_rank"].to_list() == first["student_rank"]
    assert own["token_id"].to_list() == [first["input_ids"][p] for p in first["positions"]]
    assert own["text"].dtype == pl.String
    assert own.equals(ts.tokens(folder, id=first["id"]))
    with pytest.raises(UsageError, match="no scored trajectory has the id 'none'"):
        ts.tokens(folder, id="none")


def test_a_row_without_tokens_and_one_without_a_column_are_no_accident(tmp_path: Path) -> None:
    rows = [trajectory(0, [3, 4], [1.0, 2.0], student_entropy=None), trajectory(1, [], [], n_tokens=0)]
    made = write_folder(tmp_path / "s", rows)
    shutil.copy(TOKENIZER, made)
    found = ts.tokens(made)
    assert found["student_rank"].to_list() == [3, 4]
    assert found["student_entropy"].to_list() == [None, None]


def test_what_completes_after_metrics_is_metrics() -> None:
    assert dir(ts.metrics) == sorted(METRICS)
    assert ts.Metric is ts.metrics.Metric


@pytest.mark.parametrize(("ground", "dark"), [("15;0", True), ("0;15", False), ("0;default;7", False), (None, True)])
def test_the_most_surprising_token_stands_out(ground: str | None, dark: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brighter the more surprising on a dark ground, darker on a light one; the least keeps the terminal's."""
    monkeypatch.delenv("COLORFGBG", raising=False)
    if ground is not None:
        monkeypatch.setenv("COLORFGBG", ground)
    thresholds = (0.1, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0)
    values = (0.0, *thresholds)
    statistic = Statistic("surprisal", "nats", "", values, thresholds)
    view = TokenView("a", "p", None, "ok", None, None, {}, tuple("abcdefgh"), tuple(range(8)), {"surprisal": statistic})
    text = list(token_parts([view], "surprisal", numbers=False))[3]
    styles = {str(text)[span.start : span.end]: str(span.style) for span in text.spans if span.style}  # type: ignore[union-attr]
    assert "a" not in styles
    shades = [_brightness(styles[letter].partition(" on ")[2]) for letter in "bcdefgh"]
    assert shades == sorted(shades, reverse=not dark)
    for letter in "bcdefgh":
        over, under = (_brightness(colour) for colour in styles[letter].split(" on "))
        assert (max(over, under) + 0.05) / (min(over, under) + 0.05) >= 4.5, letter


def _brightness(colour: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
