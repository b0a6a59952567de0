"""Exports for axolotl: its two dataset types, pre-tokenized and `chat_template`, and the options that go with them.

Masks go pre-tokenized: exactly three columns and an empty `type`. Its character offsets (`train_detail`, with an inclusive
`end_offset`) are widened to token borders there, so they would not be exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from trajscore.exporters.soft import SoftTargets, lists_of, nested, soft_rows
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
_KD = """\
plugins:
  - axolotl.integrations.kd.KDPlugin
kd_trainer: true
kd_ce_alpha: 0.0
kd_alpha: 1.0
kd_temperature: 1.0
"""
_TARGETS = ("target_token_ids", "target_logprobs", "target_mask")
_NEVER = -1e9
"""axolotl's own padding; minus infinity would give NaN."""

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
    soft_targets = "taken"
    meaning = (
        "input_ids, attention_mask, labels (Parquet), with a teacher's best entries for its KD plugin; or conversations "
        "(JSONL); no weights"
    )

    def write_messages(self, rows: Iterator[Conversation], plan: Plan, folder: Path) -> None:
        """Write `train.jsonl`."""
        write_jsonl(map(_marked, rows), folder / MESSAGES)

    def write_tokens(self, batches: Iterator[pa.RecordBatch], plan: Plan, folder: Path) -> None:
        """Write `train.parquet`."""
        schema = token_schema(replace(plan, topk=0), attention_mask=True)
        batches = map(with_attention_mask, batches)
        if plan.topk:
            kinds = (pa.int32(), pa.float32(), pa.int32())
            fields = [pa.field(name, pa.list_(pa.list_(kind))) for name, kind in zip(_TARGETS, kinds, strict=True)]
            schema = pa.schema([*schema, *fields])
            batches = (_with_targets(batch, plan.topk) for batch in batches)
        write_batches(batches, schema, folder / TOKENS)

    def settings(self, plan: Plan) -> dict[str, str]:
        """`data.yaml`: the part of a configuration that concerns the data."""
        limits = f"# Longer rows would be dropped without `raise`.\nsequence_len: {plan.limit}\nexcess_length_strategy: raise\n"
        if plan.form == "tokens":
            return {"data.yaml": (_KD if plan.topk else "") + _TOKENS + limits}
        return {"data.yaml": _MESSAGES + (_CONTEXT if plan.context else "") + limits}

    def command(self, plan: Plan) -> str:
        """axolotl takes one file: these lines and the user's."""
        return "cat data.yaml YOUR.yaml > sft.yaml && axolotl train sft.yaml"

    def notes(self, plan: Plan) -> list[str]:
        """Where the paths are relative to, and what the teacher's entries are."""
        notes = ["`YOUR.yaml` holds the rest: `base_model: MODEL`, `output_dir`, batch size, optimizer."]
        if plan.topk:
            notes.append(
                "Row i of `target_token_ids`, `target_logprobs` and `target_mask` is about token i + 1, as axolotl's loss "
                "reads them since June 2025; probabilities are normalised over the K entries."
            )
        return notes

    def read_messages(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Rows of `train.jsonl`."""
        for row in read_jsonl(folder / MESSAGES):
            messages = [{key: value for key, value in each.items() if key != _TRAIN} for each in row["messages"]]
            yield {"messages": messages, "tools": row.get("tools"), "sample_weight": None}

    def read_tokens(self, folder: Path) -> Iterator[Trained]:
        """Rows of `train.parquet`."""
        for row in parquet_rows(folder / TOKENS):
            soft = _TARGETS[0] in row
            exact_columns(list(row), (*_COLUMNS, *(_TARGETS if soft else ())), folder / TOKENS)
            found = trained(row["input_ids"], row["labels"])
            yield replace(found, targets=_targets(*(row[name] for name in _TARGETS))) if soft else found

    def load(self, folder: Path, plan: Plan, student: str | None) -> Iterator[Trained]:
        """Through `axolotl.utils.data.prepare_datasets`."""
        from trajscore.integrations.axolotl import load

        return (_loaded(row) for row in load(folder, student))


def _with_targets(batch: pa.RecordBatch, k: int) -> pa.RecordBatch:
    """The batch with what axolotl's collator wants of a teacher: NEXT, normalised, without infinities."""
    columns = list[list[pa.Array]]([[], [], []])
    for targets in soft_rows(batch, k):
        found = targets.next().normalised()
        on_PK = found.there_P[:, None] & np.isfinite(found.logprobs_PK)
        values = (found.ids_PK, np.where(on_PK, found.logprobs_PK, _NEVER), on_PK.astype(np.int32))
        for column, each, kind in zip(columns, values, (pa.int32(), pa.float32(), pa.int32()), strict=True):
            column.append(nested(each, kind))
    for name, column, kind in zip(_TARGETS, columns, (pa.int32(), pa.float32(), pa.int32()), strict=True):
        batch = batch.append_column(name, lists_of(column, pa.list_(kind)))
    return batch


def _targets(ids: Any, logprobs: Any, mask: Any) -> SoftTargets:
    given = (each.as_py() if hasattr(each, "as_py") else each for each in (ids, logprobs, mask))
    ids_PK, logprobs_PK, mask_PK = map(np.array, given)
    if not ids_PK.ndim == logprobs_PK.ndim == mask_PK.ndim == 2:
        raise ValueError("entries of a teacher are no lists of one length")
    there_P = np.asarray(mask_PK.any(1))
    if not np.isfinite(logprobs_PK).all() or np.abs(np.exp(logprobs_PK[there_P]).sum(1) - 1).max(initial=0) > 1e-3:
        raise ValueError("target_logprobs are not those of probabilities that sum to 1")
    values = np.where(mask_PK > 0, logprobs_PK, -np.inf)
    return SoftTargets(ids_PK.astype(np.int64), values, np.full(len(ids_PK), np.nan), there_P).previous()


def _loaded(row: tuple[Any, ...]) -> Trained:
    found = trained(*row[:2])
    return replace(found, targets=_targets(*row[2:])) if len(row) > 2 else found
