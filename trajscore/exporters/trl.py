"""Exports for TRL's `SFTTrainer`: its dataset formats and options; how it trains is in `integrations.trl`.

Conversations that end in the only assistant's turn that is trained on become `prompt` and `completion`: TRL then trains on
the completion with the model's own chat template. Others stay `messages` with `assistant_only_loss`, for which TRL may swap
in a template of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trajscore.exporters.base import (
    CHAT_TEMPLATE,
    Conversation,
    Exporter,
    Plan,
    Trained,
    chat_row,
    parquet_rows,
    read_jsonl,
    token_schema,
    trained,
    write_jsonl,
)
from trajscore.exporters.soft import TOPK_COLUMNS, SoftTargets, entries_of
from trajscore.io.parquet import write_batches
from trajscore.schema import NO_LOSS

# A folder of its own: `datasets` cannot load the one it is run in, since "." gives no name.
DATA, TOKENS, MESSAGES = "data", "data/train.parquet", "data/train.jsonl"

_SCRIPT = """\
import sys

import yaml
from datasets import load_dataset
from trl import SFTConfig{plain}
{weighted}
with open("sft.yaml") as file:
    options = yaml.safe_load(file)
rows = load_dataset(options.pop("dataset_name"), split="train")
trainer = {trainer}(sys.argv[1], SFTConfig(output_dir=sys.argv[2], **options), train_dataset=rows)
trainer.train()
trainer.save_model()
"""


class Trl(Exporter):
    """TRL: pre-tokenized rows with labels, or conversations; weights through `integrations.trl.WeightedSFTTrainer`."""

    name = "trl"
    trainer = "TRL"
    package = "trl"
    token_weights = True
    signed_weights = True
    soft_targets = "taken"
    sample_weights = ("messages", "tokens")
    context = "before"
    row_variables = True
    chat_templates = True
    meaning = (
        "input_ids and labels (Parquet), or prompt and completion (JSONL); weights, and a teacher's best entries, with trainer "
        "classes of ours"
    )

    def write_messages(self, rows: Iterator[Conversation], plan: Plan, folder: Path) -> None:
        """Write `data/train.jsonl`."""
        (folder / DATA).mkdir()
        write_jsonl((_split(chat_row(row)) if plan.single_turn else chat_row(row) for row in rows), folder / MESSAGES)

    def write_tokens(self, batches: Iterator[pa.RecordBatch], plan: Plan, folder: Path) -> None:
        """Write `data/train.parquet`."""
        (folder / DATA).mkdir()
        write_batches(batches, token_schema(plan), folder / TOKENS)

    def settings(self, plan: Plan) -> dict[str, str]:
        """`sft.yaml` for `trl sft`, and `train.py`, which does the same in a dozen lines."""
        lines = [
            f"dataset_name: {DATA}",
            "# TRL cuts at 1,024 tokens unless told otherwise.",
            f"max_length: {plan.limit}" if plan.exact else "max_length: null",
        ]
        if plan.form == "messages" and not plan.single_turn:
            lines += ["# Loss on every assistant turn.", "assistant_only_loss: true"]
        if plan.chat_template:
            lines.append(f"chat_template_path: {CHAT_TEMPLATE}")
        ours = _class_of_ours(plan)
        script = _SCRIPT.format(
            plain="" if ours is not None else ", SFTTrainer",
            weighted="" if ours is None else f"\nfrom trajscore.integrations.trl import {ours}\n",
            trainer=ours or "SFTTrainer",
        )
        return {"sft.yaml": "\n".join(lines) + "\n", "train.py": script}

    def command(self, plan: Plan) -> str:
        """The `trl` command, or the script where weights need our trainer."""
        if _class_of_ours(plan) is not None:
            return "python train.py MODEL OUTPUT"
        return "trl sft --config sft.yaml --model_name_or_path MODEL --output_dir OUTPUT"

    def notes(self, plan: Plan) -> list[str]:
        """What to know about weights and templates."""
        notes = ["`train.py MODEL OUTPUT` trains from Python with the same options."]
        if plan.weighted:
            notes.append(
                "TRL's own trainer drops weights without a word; `trajscore.integrations.trl.WeightedSFTTrainer` takes "
                "them: loss = sum(w * nll) / sum(|w|) over the tokens of a step."
            )
        if plan.topk:
            notes.append(
                "No trainer of TRL takes a stored teacher. `trajscore.integrations.trl.StoredTeacherTrainer` does: the "
                'divergence (`divergence="forward"`, `reverse` or `js`) over its best entries and one bucket for the rest.'
            )
        if plan.form == "messages" and not plan.single_turn:
            notes.append(
                "For `assistant_only_loss` TRL replaces chat templates without generation marks by its own for known "
                "families, which may render other text; `--check` compares."
            )
        return notes

    def read_messages(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Rows of `train.jsonl`, prompt and completion joined."""
        for row in read_jsonl(folder / MESSAGES):
            messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
            yield {"messages": messages, "tools": row.get("tools"), "sample_weight": row.get("sample_weight")}

    def read_tokens(self, folder: Path) -> Iterator[Trained]:
        """Rows of `train.parquet`."""
        for row in parquet_rows(folder / TOKENS):
            found = trained(row["input_ids"], row["labels"], row.get("loss_weight"), row.get("sample_weight"))
            if TOPK_COLUMNS[0] in row:
                ids, logprobs = (row[name] for name in TOPK_COLUMNS[:2])
                k = max((len(each) for each in ids.as_py()), default=0)
                found = replace(found, targets=entries_of(ids, logprobs, None, k))
            yield found

    def load(self, folder: Path, plan: Plan, student: str | None) -> Iterator[Trained]:
        """Through `datasets`, TRL's preparation and its collator."""
        from trajscore.integrations.trl import load

        return (_loaded(*row) for row in load(folder, student))


def _class_of_ours(plan: Plan) -> str | None:
    """The trainer class that TRL lacks for such rows."""
    return "StoredTeacherTrainer" if plan.topk else "WeightedSFTTrainer" if plan.weighted else None


def _loaded(ids: Any, labels: Any, weight: Any, *targets: Any) -> Trained:
    found = trained(ids, labels, weight)
    if not targets:
        return found
    there_P = labels != NO_LOSS
    logprobs_PK = np.where(there_P[:, None], targets[1], -np.inf)
    return replace(found, targets=SoftTargets(targets[0].astype(np.int64), logprobs_PK, targets[2], there_P))


def _split(row: dict[str, Any]) -> dict[str, Any]:
    messages = row.pop("messages")
    return {"prompt": messages[:-1], "completion": messages[-1:], **row}
