"""Mask files as `mask` writes them, from the rows of a score folder or from plain lists; the caller says which tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trajscore import scan

FIELDS = {
    "id": pa.string(),
    "prompt_id": pa.string(),
    "teacher": pa.string(),
    "input_ids": pa.list_(pa.int32()),
    "labels": pa.list_(pa.int32()),
    "loss_weight": pa.list_(pa.float32()),
    "teacher_topk_ids": pa.list_(pa.list_(pa.int32())),
    "teacher_topk_logprobs": pa.list_(pa.list_(pa.float32())),
    "teacher_log_tail": pa.list_(pa.float32()),
    "sample_weight": pa.float64(),
}
ABOUT = {
    "rule": "entropy",
    "options": {},
    "keep": 0.5,
    "seed": 0,
    "scope": "trajectory",
    "student": {"name": "student"},
}

Choose = Callable[[dict[str, Any], list[int]], Sequence[bool | float]]


def write_mask(path: Path, rows: Sequence[dict[str, Any]], **about: Any) -> Path:
    """A mask file of these rows, which says `about` of itself; columns that no row has are left out."""
    schema = pa.schema(
        [(name, kind) for name, kind in FIELDS.items() if any(name in row for row in rows)],
        metadata={"trajscore.mask": json.dumps(ABOUT | about)},
    )
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, row_group_size=7)
    return path


def mask_rows(scores: Path, choose: Choose, *, soft: bool = False, limit: int = 10**9) -> list[dict[str, Any]]:
    """Rows of a mask over the scored tokens that `choose` keeps (or weights) of each row, given the row and its tokens."""
    rows = []
    for row in scan(scores).head(limit).collect().to_dicts():
        if row["status"] != "ok":
            continue
        chosen = choose(row, [row["input_ids"][place] for place in row["positions"]])
        labels, weights = [-100] * len(row["input_ids"]), [0.0] * len(row["input_ids"])
        for place, value in zip(row["positions"], chosen, strict=True):
            weights[place] = float(value)
            labels[place] = row["input_ids"][place] if value else -100
        mask = {name: row[name] for name in ("id", "prompt_id", "teacher", "input_ids")} | {"labels": labels}
        rows.append(mask | ({"loss_weight": weights} if soft else {}))
    return rows
