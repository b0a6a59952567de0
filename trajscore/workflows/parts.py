"""Scores part by part, for passes that write. It knows parts and row numbers; nothing of what is done with the rows.

polars reads ahead across files: one query over all parts would hold many at once whenever writing is slower than reading.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pyarrow.parquet as pq

from trajscore.workflows.metric_table import Source

ROW = "trajscore.row"
"""Name of the row number over all folders, which no column of a corpus has."""


def numbered(source: Source) -> pl.LazyFrame:
    """All rows with their numbers, in one query."""
    return source.frame.with_row_index(ROW)


def numbered_parts(source: Source) -> Iterator[pl.LazyFrame]:
    """The rows of each part in order, numbered over all of them, with the columns and types of all parts together.

    A LazyFrame, whose parts are unknown, comes as one.
    """
    if not source.paths:
        yield numbered(source)
    first = 0
    for path in source.paths:
        part = pl.scan_parquet(path, glob=False)
        present = part.collect_schema()
        columns = [
            (pl.col(name) if name in present else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in source.columns.items()
        ]
        yield part.select(columns).with_row_index(ROW, first)
        first += pq.read_metadata(path).num_rows
