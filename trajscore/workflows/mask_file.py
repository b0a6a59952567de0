"""Masked rows -> one file. It knows the layout that trainers and `trajscore export` read; no rule and no scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.workflows.kept_rows import replacing

METADATA_KEY = "trajscore.mask"
"""Where a Parquet file keeps how it was made."""

_FIELDS = (
    ("id", pa.string(), "name of the trajectory"),
    ("prompt_id", pa.string(), "name of the prompt"),
    ("teacher", pa.string(), "who wrote the trajectory; null when unknown"),
    ("input_ids", pa.list_(pa.int32()), "the whole rendered conversation in the student's tokens"),
    ("labels", pa.list_(pa.int32()), "input_ids where there is loss, else -100; unshifted"),
    ("loss_weight", pa.list_(pa.float32()), "weight of each label's loss, 0 where there is none"),
    ("sample_weight", pa.float64(), "weight of the trajectory"),
)


def mask_schema(columns: list[str], metadata: dict[str, Any]) -> pa.Schema:
    """The Arrow schema of a file of masks.

    Args:
        columns: which of the columns it holds.
        metadata: how it was made, kept as JSON.
    """
    fields = [
        pa.field(name, dtype, metadata={"meaning": meaning}) for name, dtype, meaning in _FIELDS if name in columns
    ]
    return pa.schema(fields, metadata={METADATA_KEY: orjson.dumps(metadata).decode()})


def write_masks(batches: Iterator[pl.DataFrame], columns: list[str], metadata: dict[str, Any], out: Path) -> None:
    """Write masked rows, a batch at a time.

    Args:
        batches: the rows; they are drawn while the file has a temporary name, so that an error on the way leaves nothing.
        columns: their columns.
        metadata: how they were made; only Parquet can keep it.
        out: a `.parquet` or `.jsonl` file; replaced whole, or not at all.

    Raises:
        TrajscoreError: the file cannot be written.
    """
    with replacing(out) as temporary:
        if out.suffix == ".jsonl":
            with temporary.open("wb") as handle:
                for batch in batches:
                    batch.write_ndjson(handle)
            return
        schema = mask_schema(columns, metadata)
        with pq.ParquetWriter(temporary, schema, compression="zstd", version="2.6") as writer:
            for batch in batches:
                if batch.height:
                    writer.write_table(batch.to_arrow().select(schema.names).cast(schema))
