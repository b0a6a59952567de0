"""Exports for verl's SFT trainer: its Parquet columns and overrides.

The dataset class for masks is in `integrations.verl`. verl's own dataset tokenizes message by message and has no
column for a mask. Masks and weights go through a class of ours as `loss_mask`, which may be fractional: verl's loss is
sum(loss_mask * nll) / sum(loss_mask) without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.exporters.base import (
    Conversation,
    Exporter,
    Plan,
    Trained,
    exact_columns,
    parquet_rows,
    uses_tools,
)
from trajscore.io.parquet import open_pages, write_batches
from trajscore.schema import NO_LOSS

DATA = "train.parquet"
_TOKENS = pa.schema([("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.float32()))])
_DEFAULT_TOKENS_PER_GPU = 8192
_BATCH_ROWS = 512


class Verl(Exporter):
    """verl: `messages` for its own dataset, or tokens and `loss_mask` for `integrations.verl.TokenMaskSFTDataset`."""

    name = "verl"
    trainer = "verl"
    package = "verl"
    token_weights = True
    sample_weights = ("tokens",)
    meaning = "messages (Parquet), or input_ids and loss_mask, weights included, with a dataset class of ours"

    def refusal(self, row: Conversation) -> str:
        """Parquet gives every struct the keys of all rows, and templates would print the nulls."""
        if uses_tools(row):
            return "tools: verl reads them from Parquet, which adds null keys that chat templates would print"
        others = [key for message in row.messages for key, value in message.items() if not isinstance(value, str)]
        return f"keys: messages must hold strings only, and {others[0]!r} is none" if others else ""

    def write_messages(self, rows: Iterator[Conversation], plan: Plan, folder: Path) -> None:
        """Write `train.parquet` with `messages`."""
        turn = pa.struct([(key, pa.string()) for key in plan.message_keys])
        schema = pa.schema([("messages", pa.list_(turn))])
        some = iter(lambda: [{"messages": row.messages} for row in islice(rows, _BATCH_ROWS)], [])
        write_batches((pa.RecordBatch.from_pylist(each, schema=schema) for each in some), schema, folder / DATA)

    def write_tokens(self, batches: Iterator[pa.RecordBatch], plan: Plan, folder: Path) -> None:
        """Write `train.parquet` with `input_ids` and `loss_mask`."""
        write_batches((_masked(batch, plan) for batch in batches), _TOKENS, folder / DATA)

    def settings(self, plan: Plan) -> dict[str, str]:
        """`overrides.txt`: one override a line."""
        lines = [
            f"data.train_files={DATA}",
            f"data.max_length={plan.limit}",
            f"data.max_token_len_per_gpu={max(plan.limit, _DEFAULT_TOKENS_PER_GPU)}",
            "data.truncation=error",
            "data.pad_mode=no_padding",
        ]
        if plan.form == "tokens":
            lines += [
                "data.custom_cls.path=pkg://trajscore.integrations.verl",
                "data.custom_cls.name=TokenMaskSFTDataset",
            ]
        return {"overrides.txt": "\n".join(lines) + "\n"}

    def command(self, plan: Plan) -> str:
        """The trainer's module under torchrun."""
        return "torchrun --nproc_per_node=1 -m verl.trainer.sft_trainer $(cat overrides.txt) model.path=MODEL"

    def notes(self, plan: Plan) -> list[str]:
        """One over-long row stops verl; its default limit is 1,024."""
        notes = ["verl stops at the first row over `data.max_length`, whose default is 1,024; keep the overrides."]
        if plan.form == "messages":
            notes.append(
                "verl renders message by message and stops where that differs from the whole conversation; `--check` compares."
            )
        return notes

    def read_messages(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Rows of `train.parquet`, without the null keys."""
        exact_columns(pq.read_schema(folder / DATA).names, ["messages"], folder / DATA)
        with open_pages(folder / DATA) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield {
                        "messages": [_without_nulls(each) for each in row["messages"]],
                        "tools": None,
                        "sample_weight": None,
                    }

    def read_tokens(self, folder: Path) -> Iterator[Trained]:
        """Rows of `train.parquet`."""
        for row in parquet_rows(folder / DATA):
            exact_columns(list(row), _TOKENS.names, folder / DATA)
            yield _row(row["input_ids"], row["loss_mask"])

    def load(self, folder: Path, plan: Plan, student: str | None) -> Iterator[Trained]:
        """Through the dataset that verl's trainer builds from the overrides."""
        from trajscore.integrations.verl import load

        return (_row(*row) for row in load(folder, student))


def _masked(batch: pa.RecordBatch, plan: Plan) -> pa.RecordBatch:
    """`loss_mask` from labels and weights, in one array over all rows."""
    labels = batch["labels"]
    offsets = np.asarray(labels.offsets) - labels.offsets[0].as_py()
    mask = (labels.flatten().to_numpy(zero_copy_only=False) != NO_LOSS).astype(np.float64)
    if plan.token_weights:
        mask *= batch["loss_weight"].flatten().to_numpy(zero_copy_only=False)
    if plan.sample_weights:
        mask *= np.repeat(batch["sample_weight"].to_numpy(zero_copy_only=False), np.diff(offsets))
    values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(mask, pa.float32()))
    return batch.append_column("loss_mask", values)


def _row(ids: Any, mask: Any) -> Trained:
    ids_P, mask_P = np.asarray(ids, np.int64), np.asarray(mask, np.float64)
    if ids_P.shape != mask_P.shape:
        raise ValueError("loss_mask and input_ids differ in length")
    return Trained(ids_P, mask_P)


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None}
