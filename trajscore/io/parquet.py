"""Parquet files larger than memory: row groups of bounded size are written, and pages are read one by one. It knows sizes;
nothing of what the columns mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_BYTES = 64 * 2**20
"""Most bytes of one row group in memory, unless a single row has more. Readers hold whole row groups, and none can hold a list
column of 2^31 elements or a text column of 2^31 bytes in one array."""

_READ_BYTES = 2**20


def row_group_rows(table: pa.Table) -> int:
    """Rows per row group, the same for all, so that each group is within `GROUP_BYTES`: the table's own number or a half, a
    quarter, ... of it, rounded up; at least 1.

    >>> row_group_rows(pa.table({"x": [[1, 2], [3], []]}))
    3
    """
    rows = max(1, int(table.num_rows))
    while rows > 1 and any(table.slice(first, rows).nbytes > GROUP_BYTES for first in range(0, table.num_rows, rows)):
        rows = (rows + 1) // 2
    return rows


def open_pages(path: Path | IO[bytes]) -> pq.ParquetFile:
    """A Parquet file to be read in batches, in the memory of a batch even where a row group is the whole file.

    By default pyarrow fetches row groups ahead, whole, and keeps what it has fetched: in the end all of the file.
    """
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BYTES)
