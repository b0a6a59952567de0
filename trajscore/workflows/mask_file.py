"""The layout of a file of masks, which trainers and `trajscore export` read. It knows no rule and no scores."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson
import pyarrow as pa

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


def mask_schema(columns: Collection[str], metadata: dict[str, Any]) -> pa.Schema:
    """The Arrow schema of a file of masks.

    Args:
        columns: which of the columns it holds.
        metadata: how it was made, kept as JSON.
    """
    fields = [
        pa.field(name, dtype, metadata={"meaning": meaning}) for name, dtype, meaning in _FIELDS if name in columns
    ]
    return pa.schema(fields, metadata={METADATA_KEY: orjson.dumps(metadata).decode()})
