"""Exports for SkyRL's SFT trainer: rows of token ids with a mask of zeros and ones, unpadded, as its pretokenized datasets are.

The mask at index p is that of the token at index p. SkyRL takes no other weights: it makes integers of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from trajscore.exporters.base import Exporter, Plan, Trained, exact_columns, parquet_rows
from trajscore.io.parquet import write_batches
from trajscore.schema import NO_LOSS

DATA = "train.parquet"
_COLUMNS = pa.schema([("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.int8()))])


class SkyRL(Exporter):
    """SkyRL: `input_ids` and `loss_mask` for its pretokenized datasets. No weights other than 0 and 1."""

    name = "skyrl"
    trainer = "SkyRL"
    package = "skyrl"
    forms = ("tokens",)
    meaning = "input_ids and loss_mask of zeros and ones (Parquet), from a mask; no weights"

    def write_tokens(self, batches: Iterator[pa.RecordBatch], plan: Plan, folder: Path) -> None:
        """Write `train.parquet`."""
        write_batches(map(_masked, batches), _COLUMNS, folder / DATA)

    def settings(self, plan: Plan) -> dict[str, str]:
        """`overrides.txt`: one override a line."""
        return {"overrides.txt": f"pretokenized_dataset_paths=['{DATA}']\nmax_length={plan.limit}\n"}

    def command(self, plan: Plan) -> str:
        """The SFT trainer's module."""
        return "python -m skyrl.train.main_sft $(cat overrides.txt) model.path=MODEL"

    def notes(self, plan: Plan) -> list[str]:
        """What SkyRL does with long rows."""
        return ["SkyRL drops rows whose mask is empty after cutting at `max_length`; keep the overrides."]

    def read_tokens(self, folder: Path) -> Iterator[Trained]:
        """Rows of `train.parquet`."""
        for row in parquet_rows(folder / DATA):
            exact_columns(list(row), _COLUMNS.names, folder / DATA)
            ids_P, mask_P = row["input_ids"].astype(np.int64), row["loss_mask"].astype(np.float64)
            if ids_P.shape != mask_P.shape or not np.isin(mask_P, (0, 1)).all():
                raise ValueError("loss_mask is no 0 or 1 for every token")
            yield Trained(ids_P, mask_P)

    def load(self, folder: Path, plan: Plan, student: str | None) -> Iterator[Trained]:
        """Through `skyrl.train.dataset.pretokenized`."""
        from trajscore.integrations.skyrl import load

        return (Trained(*row) for row in load(folder, plan.limit))


def _masked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`loss_mask` from labels, in one array over all rows."""
    labels = batch["labels"]
    offsets = np.asarray(labels.offsets) - labels.offsets[0].as_py()
    mask = (labels.flatten().to_numpy(zero_copy_only=False) != NO_LOSS).astype(np.int8)
    return batch.append_column("loss_mask", pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(mask)))
