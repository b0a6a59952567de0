"""Parquet files larger than memory: row groups of bounded size are written, and pages are read one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_BYTES = 64 * 2**20
"""Most bytes of one row group in memory, unless a single row has more. Readers hold whole row groups, and none can hold a list
column of 2^31 elements or a text column of 2^31 bytes in one array."""

_READ_BYTES = 2**20
_FORMAT: dict[str, Any] = {"compression": "zstd", "version": "2.6", "write_page_checksum": True}


def write_table(table: pa.Table, where: Any) -> None:
    """Write a table that is in memory, into a file or a buffer."""
    pq.write_table(table, where, row_group_size=row_group_rows(table), **_FORMAT, **_encodings(table.schema))


def write_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    """Write batches as they come; at most a row group of them is in memory.

    Args:
        batches: with the columns of `schema`, and others that are left out.
        schema: columns, types and metadata of the file.
        path: of the file.

    Returns:
        The number of rows.
    """
    rows = waiting_bytes = 0
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(path, schema, **_FORMAT, **_encodings(schema)) as writer:
        for batch in batches:
            waiting.append(batch if batch.schema.equals(schema) else batch.select(schema.names).cast(schema))
            rows += batch.num_rows
            waiting_bytes += batch.nbytes
            # A row group per batch would make thousands of tiny ones where few rows of each batch are kept.
            if waiting_bytes >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting, waiting_bytes = [], 0
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema))
    return rows


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """How columns are encoded: lists of lists of numbers, whose values hardly repeat, without a dictionary.

    The bytes of a float32 of theirs stand apart, all first ones, all second ones and so on: signs and exponents then compress
    well. Other columns are as pyarrow writes them: rows that repeat compress best so.
    """
    plain, split, repeated = list[str](), list[str](), list[str]()
    for field in schema:
        for path, dtype in _leaves(field.type, field.name):
            nested = path.count(_ELEMENT) > 1
            if nested and pa.types.is_float32(dtype):
                split.append(path)
            else:
                (plain if nested and pa.types.is_integer(dtype) else repeated).append(path)
    return {"use_dictionary": repeated, "use_byte_stream_split": split} if split or plain else {}


_ELEMENT = ".list.element"


def _leaves(dtype: pa.DataType, path: str) -> Iterator[tuple[str, pa.DataType]]:
    """Paths and types of the columns that Parquet makes of a type."""
    is_ = pa.types
    if is_.is_struct(dtype):
        for child in dtype:
            yield from _leaves(child.type, f"{path}.{child.name}")
    elif is_.is_map(dtype):
        yield from _leaves(dtype.key_type, f"{path}.key_value.key")
        yield from _leaves(dtype.item_type, f"{path}.key_value.value")
    elif any(test(dtype) for test in (is_.is_list, is_.is_large_list, is_.is_fixed_size_list)):
        yield from _leaves(dtype.value_type, path + _ELEMENT)
    else:
        yield path, dtype


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
