"""Metrics with coefficients of the whole corpus: cases by hand, on which rows these are fitted, where they are kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow.parquet as pq
import pytest

import trajscore as ts
import trajscore.metrics as tm
from tests.helpers.score_tables import random_rows, refused, with_every_column, write_folder
from trajscore.metrics import METRICS

FITTED = [name for name, metric in METRICS.items() if metric.kind == "corpus"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of one student."""
    home = tmp_path_factory.mktemp("corpus")
    rows = [*with_every_column(random_rows(60, seed=4), seed=4), refused(99, "too_long")]
    return [write_folder(home / name, part, part_rows=9) for name, part in (("a", rows[:40]), ("b", rows[40:]))]


def test_casl_by_hand() -> None:
    """Against numpy's own least squares, on the four columns written out."""
    rows: dict[str, list[Any]] = {"student_surprisal": [], "sentence": []}
    for tokens, sentences in ((4, 1), (4, 2), (5, 2), (8, 3), (6, 3)):
        rows["sentence"].append([min(token, sentences - 1) for token in range(tokens)])
        rows["student_surprisal"].append(
            [2.0 + sentences**2 / 8 if token < sentences else 0.5 + tokens / 8 for token in range(tokens)]
        )
    frame = pl.DataFrame(rows)
    gamma = METRICS["aslec_casl"].on(frame.lazy()).fitted
    assert gamma is not None
    lines, means = [], []
    for surprisal, sentence in zip(rows["student_surprisal"], rows["sentence"], strict=True):
        first = [-s for n, s in enumerate(surprisal) if n == sentence.index(sentence[n])]
        others = [-s for n, s in enumerate(surprisal) if n != sentence.index(sentence[n])]
        lines.append([np.mean(others), np.mean(first), len(first) / len(surprisal), 1.0])
        means.append(np.mean([-s for s in surprisal]))
    assert np.linalg.matrix_rank(np.array(lines)) == 4
    assert gamma["gamma"] == pytest.approx(np.linalg.lstsq(np.array(lines), np.array(means), rcond=None)[0][2])
    expected = [mean - gamma["gamma"] * line[2] for mean, line in zip(means, lines, strict=True)]
    assert frame.select(tm.aslec_casl()).to_series().to_list() == pytest.approx(expected)
    # Four rows are enough.
    four = METRICS["aslec_casl"].on(frame.head(4).lazy()).fitted
    assert four is not None
    assert four["gamma"] == pytest.approx(np.linalg.solve(np.array(lines[:4]), np.array(means[:4]))[2])


def test_fewer_rows_than_coefficients_determine_nothing() -> None:
    frame = pl.DataFrame({"student_surprisal": [[1.0, 2.0, 0.5]] * 3, "sentence": [[0, 0, 1]] * 3})
    assert frame.select(tm.aslec_casl()).to_series().to_list() == [None] * 3
    # Enough rows, but all alike.
    assert pl.concat([frame] * 3).select(tm.aslec_casl()).to_series().to_list() == [None] * 9


def test_rule_quality_by_hand() -> None:
    rows = {
        "response_words": [10, 10, 40, 0],
        "verification_words": [0, 1, 4, 0],
        "exploration_words": [1, 1, 4, 0],
        "conclusion_words": [2, 0, 0, 0],
    }
    # Words: mean 20, deviation sqrt(200). Checks per word 0, 0.1, 0.1: mean 1/15, deviation sqrt(2)/30. Hedges: all alike.
    # Conclusions per word 0.2, 0, 0: twice as far on the other side.
    low, high = -1 / math.sqrt(2), math.sqrt(2)
    expected = [
        0.3 * low - 0.2 * high + 0.25 * high,
        0.3 * low - 0.2 * low + 0.25 * low,
        0.3 * high - 0.2 * low + 0.25 * low,
    ]
    assert pl.DataFrame(rows).select(tm.rule_quality()).to_series().to_list() == pytest.approx([*expected, None])
    # One word is a text, too.
    few = {name: [1, 3] if name == "response_words" else [0, 0] for name in rows}
    assert pl.DataFrame(few).select(tm.rule_quality()).to_series().to_list() == pytest.approx([-0.3, 0.3])


@pytest.mark.parametrize("name", FITTED)
def test_coefficients_are_those_of_all_folders_whatever_is_kept(name: str, folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "kept.parquet"
    every = ts.select(folders, name)
    some = ts.select(folders, name, where="teacher = 'A'", per_prompt=1, out=out)
    alone = ts.select(folders[0], name)
    assert every.coefficients[name] == some.coefficients[name] != alone.coefficients[name]
    settings = orjson.loads(pq.read_schema(out).metadata[b"trajscore.selection"])
    assert settings["coefficients"] == some.coefficients == some.to_dict()["coefficients"]
    values = dict(every.decisions.select("id", name).iter_rows())
    kept = some.decisions.filter("kept").select("id", name)
    assert kept.height
    assert dict(kept.iter_rows()) == {key: values[key] for key in kept["id"]}
    # The same where it only stands in the condition, and in a report.
    named = ts.select(folders, "length", where=f"{name} IS NOT NULL AND teacher = 'A'")
    assert named.coefficients[name] == every.coefficients[name]
    assert named.rows_kept
    provenance = ts.report(folders, metrics=["rsr", name]).students[0].provenance
    assert provenance["coefficients"][name] == every.coefficients[name]


def test_rows_that_need_no_other_have_no_coefficients(folders: list[Path]) -> None:
    assert ts.select(folders, "rsr", top=3).coefficients == {}
    assert FITTED == ["aslec_casl", "rule_quality"]
