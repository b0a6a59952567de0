"""Scores read part by part, with the numbers of their rows; `part_files` writes a part.

polars reads ahead across files: one query over all parts would hold many at once whenever what follows is slower than reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from trajscore.scores.source import ScoreSource

ROW = "trajscore.row"
"""Name of the row number over all folders, which no column of a corpus has."""


def numbered(source: ScoreSource) -> pl.LazyFrame:
    """All rows with their numbers, in one query."""
    return source.frame.with_row_index(ROW)


def numbered_parts(source: ScoreSource) -> Iterator[pl.LazyFrame]:
    """The rows of each part in order, numbered over all of them, with the columns and types of all parts together.

    A LazyFrame, whose parts are unknown, comes as one.
    """
    if not source.paths:
        yield numbered(source)
    for path, first, _ in _places(source):
        yield source.rows_of([path]).with_row_index(ROW, first)


def planned_parts(source: ScoreSource, plan: pl.DataFrame) -> Iterator[tuple[pl.LazyFrame, pl.DataFrame]]:
    """As `numbered_parts`, each part with its rows of a plan, so that a part is joined with these alone.

    Args:
        source: the scores.
        plan: rows that are wanted by their number, column `ROW`, ascending: parts without any of them are left out.
    """
    if not source.paths:
        yield numbered(source), plan
    for path, first, height in _places(source):
        start, stop = (plan[ROW].search_sorted(row) for row in (first, first + height))
        if start < stop:
            yield source.rows_of([path]).with_row_index(ROW, first), plan.slice(start, stop - start)


def _places(source: ScoreSource) -> Iterator[tuple[Path, int, int]]:
    """Each part with the number of its first row and how many it has."""
    first = 0
    for path, height in zip(source.paths, source.part_rows, strict=True):
        yield path, first, height
        first += height
