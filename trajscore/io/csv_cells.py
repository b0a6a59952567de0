"""Cells of CSV files that a spreadsheet opens: a text that it would run as a formula is written behind an apostrophe, and read
back without it (OWASP, CSV injection).
"""

from __future__ import annotations

import polars as pl

_RUNS = r"^['\s]*[=+\-@\x{ff1d}\x{ff0b}\x{ff0d}\x{ff20}]|^[\x00-\x1f\x7f]"
_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"


def spreadsheet_safe(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame whose texts, names of columns included, no spreadsheet takes for a formula. Numbers stay as they are.

    >>> frame = pl.DataFrame({"a": ["=1+1", "-0.5", "x", None], "b": [-1, 2, 3, 4]})
    >>> spreadsheet_safe(frame)["a"].to_list()
    ["'=1+1", '-0.5', 'x', None]
    """
    names = pl.DataFrame({"name": frame.columns}, schema={"name": pl.String}).select(_behind_apostrophe(pl.col("name")))
    safe = frame.with_columns(_behind_apostrophe(pl.col(pl.String)))
    return safe.rename(dict(zip(frame.columns, names["name"], strict=True)))


def _behind_apostrophe(texts: pl.Expr) -> pl.Expr:
    runs = texts.str.contains(_RUNS) & ~texts.str.contains(_NUMBER)
    return pl.when(~runs).then(texts).otherwise(pl.lit("'") + texts)


def without_apostrophes(texts: pl.Expr) -> pl.Expr:
    """Texts as they were before `spreadsheet_safe`."""
    bare = texts.str.slice(1)
    made = texts.str.starts_with("'") & bare.str.contains(_RUNS) & ~bare.str.contains(_NUMBER)
    return pl.when(~made).then(texts).otherwise(bare)
