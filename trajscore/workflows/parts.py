"""Scores part by part. It knows parts and row numbers; nothing of what is done with the rows.

polars reads ahead across files: one query over all parts would hold many at once whenever what follows is slower than reading.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from trajscore.workflows.score_source import Source

ROW = "trajscore.row"
"""Name of the row number over all folders, which no column of a corpus has."""


def numbered(source: Source) -> pl.LazyFrame:
    """All rows with their numbers, in one query."""
    return source.frame.with_row_index(ROW)


def numbered_parts(source: Source, rows: pl.Series | None = None) -> Iterator[pl.LazyFrame]:
    """The rows of each part in order, numbered over all of them, with the columns and types of all parts together.

    A LazyFrame, whose parts are unknown, comes as one.

    Args:
        source: the scores.
        rows: numbers of the rows that are wanted, ascending: parts without any of them are left out. None wants all.
    """
    if not source.paths:
        yield numbered(source)
    first = 0
    for path, height in zip(source.paths, source.part_rows, strict=True):
        if rows is None or rows.search_sorted(first) < rows.search_sorted(first + height):
            yield source.rows_of([path]).with_row_index(ROW, first)
        first += height
