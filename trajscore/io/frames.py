"""Frames, one after the other -> one file of the format that its suffix names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow as pa

from trajscore.io.atomic import replacing
from trajscore.io.csv_cells import spreadsheet_safe
from trajscore.io.parquet import write_batches


def write_frames(frames: Iterable[pl.DataFrame], schema: pa.Schema, out: Path) -> None:
    """Write frames to one file.

    Args:
        frames: they are drawn while the file has a temporary name, so that an error on the way leaves nothing.
        schema: their columns; types and metadata are those of a Parquet file, others cannot keep them.
        out: a `.parquet`, `.jsonl` or `.csv` (its texts safe for spreadsheets) file; replaced whole, or not at all.

    Raises:
        TrajscoreError: the file cannot be written.
    """
    with replacing(out) as temporary:
        if out.suffix == ".parquet":
            write_batches((batch for frame in frames for batch in frame.to_arrow().to_batches()), schema, temporary)
            return
        with temporary.open("wb") as handle:
            if out.suffix == ".csv":
                spreadsheet_safe(pl.DataFrame(schema=schema.names)).write_csv(handle)
            for frame in frames:
                rows = frame.select(schema.names)
                if out.suffix == ".csv":
                    spreadsheet_safe(rows).write_csv(handle, include_header=False)
                else:
                    rows.write_ndjson(handle)
