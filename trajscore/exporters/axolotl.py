"""Exports for axolotl: its two dataset types, pre-tokenized and `chat_template`, and the options that go with them.

Masks go pre-tokenized: exactly three columns and an empty `type`. Its character offsets (`train_detail`, with an inclusive
`end_offset`) are widened to token borders there, so they would not be exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from trajscore.exporters.base import (
    Conversation,
    Exporter,
    Plan,
    Trained,
    chat_row,
    exact_columns,
    parquet_rows,
    read_jsonl,
    token_schema,
    trained,
    with_attention_mask,
    write_jsonl,
)
from trajscore.io.parquet import write_batches

TOKENS, MESSAGES = "train.parquet", "train.jsonl"
_TRAIN = "train"
_COLUMNS = ("input_ids", "attention_mask", "labels")

_TOKENS = """\
datasets:
  - path: train.parquet
    ds_type: parquet
    # Empty on purpose: the rows are tokenized and labelled.
    type:
"""
_MESSAGES = """\
datasets:
  - path: train.jsonl
    ds_type: json
    type: chat_template
    chat_template: tokenizer_default
    field_messages: messages
    roles_to_train: [assistant]
    train_on_eos: turn
"""
_CONTEXT = f"    # Turns with false are context: no loss.\n    message_field_training: {_TRAIN}\n"


def _marked(row: Conversation) -> dict[str, Any]:
    """A row as JSON, with a mark at each turn of the assistant's that is not trained on."""
    values = chat_row(row)
    values["messages"] = [
        {**message, _TRAIN: False} if index in row.context else message
        for index, message in enumerate(values["messages"])
    ]
    return values


class Axolotl(Exporter):
    """axolotl: pre-tokenized rows, or conversations. No weights other than 0 and 1."""

    name = "axolotl"
    trainer = "axolotl"
    package = "axolotl"
    context = "any"
    meaning = "input_ids, attention_mask, labels (Parquet), or conversations (JSONL); no weights"

    def write_messages(self, rows: Iterator[Conversation], plan: Plan, folder: Path) -> None:
        """Write `train.jsonl`."""
        write_jsonl(map(_marked, rows), folder / MESSAGES)

    def write_tokens(self, batches: Iterator[pa.RecordBatch], plan: Plan, folder: Path) -> None:
        """Write `train.parquet`."""
        schema = token_schema(plan, attention_mask=True)
        write_batches((with_attention_mask(batch) for batch in batches), schema, folder / TOKENS)

    def settings(self, plan: Plan) -> dict[str, str]:
        """`data.yaml`: the part of a configuration that concerns the data."""
        limits = f"# Longer rows would be dropped without `raise`.\nsequence_len: {plan.limit}\nexcess_length_strategy: raise\n"
        if plan.form == "tokens":
            return {"data.yaml": _TOKENS + limits}
        return {"data.yaml": _MESSAGES + (_CONTEXT if plan.context else "") + limits}

    def command(self, plan: Plan) -> str:
        """axolotl takes one file: these lines and the user's."""
        return "cat data.yaml YOUR.yaml > sft.yaml && axolotl train sft.yaml"

    def notes(self, plan: Plan) -> list[str]:
        """Where the paths are relative to."""
        return ["`YOUR.yaml` holds the rest: `base_model: MODEL`, `output_dir`, batch size, optimizer."]

    def read_messages(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Rows of `train.jsonl`."""
        for row in read_jsonl(folder / MESSAGES):
            messages = [{key: value for key, value in each.items() if key != _TRAIN} for each in row["messages"]]
            yield {"messages": messages, "tools": row.get("tools"), "sample_weight": None}

    def read_tokens(self, folder: Path) -> Iterator[Trained]:
        """Rows of `train.parquet`."""
        for row in parquet_rows(folder / TOKENS):
            exact_columns(list(row), _COLUMNS, folder / TOKENS)
            yield trained(row["input_ids"], row["labels"])

    def load(self, folder: Path, plan: Plan, student: str | None) -> Iterator[Trained]:
        """Through `axolotl.utils.data.prepare_datasets`."""
        from trajscore.integrations.axolotl import load

        return (trained(*row) for row in load(folder, student))
