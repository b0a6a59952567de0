"""Texts that spreadsheets would run are written behind an apostrophe; numbers and other texts are not touched."""

from __future__ import annotations

import polars as pl
import pytest

from trajscore.io.csv_cells import spreadsheet_safe, without_apostrophes

RUN = [
    "=1+1",
    "+A1",
    "-A1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\x1b[0m",
    "'=1",
    " =1",
    "\uff1d1",
    "-",
    "+1+1|cmd",
    "-1-1",
    "\x7f",
]
KEPT = ["", "a=1", "QwQ-32B", "-5", "+1.5e-3", "-.5", "1", "'tis", "user@host", "\u00e9"]


@pytest.mark.parametrize("text", RUN)
def test_formulas_by_hand(text: str) -> None:
    frame = pl.DataFrame({"a": [text]})
    assert spreadsheet_safe(frame)["a"].to_list() == ["'" + text]
    assert spreadsheet_safe(frame).select(without_apostrophes(pl.col("a")))["a"].to_list() == [text]


@pytest.mark.parametrize("text", KEPT)
def test_other_texts_stay(text: str) -> None:
    frame = pl.DataFrame({"a": [text, None]})
    assert spreadsheet_safe(frame).equals(frame)
    assert frame.select(without_apostrophes(pl.col("a"))).equals(frame)


def test_numbers_and_names() -> None:
    frame = pl.DataFrame({"=x": [-1.5], "n": [-3], "b": [True], "t": ["=1"], "u": ["-"]})
    made = {"'=x": [-1.5], "n": [-3], "b": [True], "t": ["'=1"], "u": ["'-"]}
    assert spreadsheet_safe(frame).to_dict(as_series=False) == made
